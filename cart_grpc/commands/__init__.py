"""Commands: the writes of the service. Each is a pure function of the rows that the store read for it. No SQL.

The commands of one transaction share a unit of work. The store fills it before they run, and writes its changes after.
"""
