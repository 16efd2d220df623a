"""A folder of images and a folder of masks that nobody here has seen before.

In reading order: `pairing` says which mask is whose, and which split a folder means; `looking`
opens every file; `labels` says what the values in the masks mean; `splitting` draws a validation
split that keeps groups together; `conversion` writes masks of class ids into a new folder.
"""
