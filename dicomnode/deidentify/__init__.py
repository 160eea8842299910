"""De-identification for research: PS3.15 Basic Application Level Confidentiality Profile with options.

What leaves for a destination that has a profile is a copy, made when it is sent; what the node keeps stays as it is.
"""
