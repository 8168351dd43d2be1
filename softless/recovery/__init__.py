"""Getting back the accuracy of a model whose attention was exchanged."""
