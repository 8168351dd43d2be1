"""Files of exported models, read without the tools that wrote them and without running them."""
