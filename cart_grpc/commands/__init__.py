"""What one transaction can do: each command is a function of the rows that were read for it. Pure, no SQL.

Commands run in company: a unit of work holds what they share. The store reads it before and writes it after.
"""
