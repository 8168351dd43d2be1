"""What this repository measures for its own documents: `python -m lab KIND`, in a checkout."""
