"""The closed form of recovery: projections of an exchanged attention, and of the layers behind it,
by least squares on what the model did before.
"""
