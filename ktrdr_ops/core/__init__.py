"""Core knows operations, and nothing of what they work on.

Law: nothing here imports a domain, an interface or the application; a domain's words never occur here.
"""
