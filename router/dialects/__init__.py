"""The languages clients speak: one module each, thin and pure, around one request type (``router.requests``).

A dialect is a list of routes (``seam.Route``: a path and a function from a body's fields to a ``Call``), and one
function that writes an error in its shape. A ``Call`` holds what is asked of a model and the function that writes the
answer. A new dialect is one new file here and one line in ``table``. ``options`` reads the fields that all dialects
share, ``vectors`` writes vectors, ``ranking`` makes scores of what a model answers.
"""
