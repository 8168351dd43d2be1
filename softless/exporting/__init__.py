"""A model as a file that other runtimes run: the module that is recorded, its forms by host."""
