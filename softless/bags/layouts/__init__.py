"""One file for each tool that writes features, and `table` with all of them."""
