"""Studies: the rows of a table, each trained, measured and compared with the others.

config   what a study is: a file of rows (recipe, changes, published numbers) and what is measured
rows     the recipes of every row, checked before anything is trained
steps    the steps of all rows, each a folder named by the hash of what it depends on; rows share what is equal
identities  what that is: recipes, flags and files as plain values
claims   who works at a step: several processes and machines may work in one folder
running  the commands of the steps, one after the other
speed    how long it will take, measured on a few steps of every training
budget   shorter trainings that fit a number of minutes
images   the same images through every row
facts    what a table may say of a row besides: sizes, bits, minutes
numbers  what the steps found, gathered: mean, spread over the seeds, and which differences are noise
page     the page that a study ends in
keeping  what of a study that ran goes into a repository
"""
