"""The embedded host services: the contracts of the services that users run, over real HTTP on loopback.

Law: a host is reached over HTTP only. It reads files and imports nothing of ours but the errors.
"""
