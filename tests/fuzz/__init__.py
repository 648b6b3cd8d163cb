"""Fuzzing: functions that take any bytes and raise only if a promise is broken.

`targets` has them by name. The suite runs each a few hundred times; `make fuzz` runs them for as long as you like, with
coverage feedback if atheris is installed. `wire` sends the same requests to a real server.
"""
