"""What a trained model says of a folder of images, and pictures of it.

One file per task, each with `predict`.
"""
