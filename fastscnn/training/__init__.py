"""All that needs labelled data: data sets, recipes, training, evaluation, plots.

The rest of the package does without; of it only the command line imports from here.
"""
