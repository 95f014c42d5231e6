"""Choose the tensors that train, under a budget."""
