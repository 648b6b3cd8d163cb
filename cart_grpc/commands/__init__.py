"""The writes that the store folds into one transaction: pure functions of the rows that they name. No SQL.

The commands of a batch share a UnitOfWork. The store loads it before them and writes its changes after them.
"""
