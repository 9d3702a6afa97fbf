"""Every picture and page that the package makes.

style           what all pictures share: colours, margins, enlarging, text in any script
contact_sheet   datasets and token caches at a glance
rows            images of classes in rows, reconstructions in columns
reconstruction  originals beside reconstructions, and errors
latent_channels what the channels of latents hold
sampling_points where tokens read the image
curves          training runs over each other
alignment       how alike models see images: bars and a matrix
report          what the quickstart left, as one page
web_page        pieces of HTML pages
"""
