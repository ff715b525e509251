"""The embedded training host: both generations of the training host service, really training on a processor.

It shows the plumbing, not an edge in the market. Law: nothing here knows a bar that was not over when it would have
been asked; what is learned from lies before what it is judged by; and the same plan over the same files with the same
seed is the same model, byte for byte, however often it was stopped on the way.
"""
