"""The files that deploy the service: they are valid, and they fit the settings, the ports and each other."""
