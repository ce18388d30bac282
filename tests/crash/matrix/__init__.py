"""Every crash state tried: each verb, each failpoint, each fault (``make crash``).

``cells.py`` says what is combined with what, ``verbs.py`` what a run does, ``lane.py`` runs them
on real processes, ``outside.py`` judges by what really exists, ``sabotage.py`` tests the tests.
"""
