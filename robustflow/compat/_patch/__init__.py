"""How :func:`robustflow.compat.patch` works. (The folder is private since that name is a function.)

From the top down: ``interface`` is what users call and ``workers`` what their worker processes do;
``session`` applies and undoes the changes of a library. A module for each library says what these
are; ``nflows_like`` is what nflows, its copies and normflows share. Below them ``recognise``
compares a library's functions with those that the kernels know, ``obstacles`` says why a call
cannot go to a kernel, ``own_code`` runs the library's own, ``counts`` who served it, and ``code``
changes a function in place.
"""
