"""De-identification for research: PS3.15 Basic Application Level Confidentiality Profile with options.

A destination with a profile gets a copy, made when it is sent; the node's own files stay unchanged.
"""
