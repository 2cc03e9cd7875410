"""Python functions behind the commands: parameters have the names and defaults of the options.

Functions raise SegrecError. URIs are local paths or s3://. Modules import what a function needs
when it is called: the command line reads defaults here, and `--help` does not wait for torch.
"""
