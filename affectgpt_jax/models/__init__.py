"""One network per file. Models see arrays and their own sizes; never a mesh, a tokenizer or a path."""
