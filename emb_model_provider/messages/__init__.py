"""What crosses the sockets between our processes: frozen structs and the frame kind of each.

Two channels use them. The *link* joins the router to one shard (many requests at once, matched by the frame's
request id): ``link``. The *control* channel joins the supervisor to each child over an inherited socket pair; its first
message is the child's whole configuration (``configs``), so that nothing secret ever stands in a command line, and what
follows tells how everybody is (``status``). ``framing`` makes frames of them and reads them.
"""
