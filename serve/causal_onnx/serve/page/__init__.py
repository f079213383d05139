"""The page at `/`: chats and texts, the attention map of a model, and what the server does."""
