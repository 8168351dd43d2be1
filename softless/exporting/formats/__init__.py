"""The formats that a model is exported to: one file each, and the table of them."""
