"""The code in the documents: all of it runs, or is checked, or has a reason in `inventory.py` why not."""
