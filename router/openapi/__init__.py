"""The description of every route (OpenAPI 3.1) and the page that shows it.

``routes`` describes each route of each dialect in terms of ``properties`` and ``answers``; ``document`` joins that with
the dialects' own table, their errors' statuses and the server's routes. Tests hold all three to what parsers read and
builders write.
"""
