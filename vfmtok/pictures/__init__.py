"""Every picture and page that the package makes.

contact_sheet   datasets and token caches at a glance; fonts for any script
rows            images of classes in rows, reconstructions in columns
reconstruction  originals beside reconstructions, errors, sampling points
curves          training runs over each other
report          what the quickstart left, as one page
"""
