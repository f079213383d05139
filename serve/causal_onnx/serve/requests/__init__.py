"""What the protocols share: a request read field by field, and the generations that it begins."""
