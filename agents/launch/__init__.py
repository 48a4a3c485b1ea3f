"""Start the workers of a training: processes of this machine, or Ray Train; or join those of torchrun. It stands on
`agents.run`.
"""
