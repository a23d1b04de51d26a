"""Where items come from: folders, mailboxes and calendars, each one a `Source` of engine/ports.py.

Rule: a source lists bytes and offsets. It never parses content: that happens in a worker. `uri.open_source` opens one.
"""
