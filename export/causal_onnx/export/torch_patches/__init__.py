"""What is replaced in PyTorch while a module runs or is traced."""
