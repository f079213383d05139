"""The main job on real input: export, prove, train, stream without PyTorch, write a report."""
