"""Rows of a database server on their way into a dataset. dsn.py says which server and what may be
shown of it, hosts.py whether it may be asked; postgres.py and mariadb.py are readers like those of
files, over one consistent snapshot, streamed.
"""
