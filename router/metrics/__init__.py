"""What ``/metrics`` tells.

What there is stands in ``catalogue``; it is counted in ``tallies``, kept beyond this process by ``store`` and written
for Prometheus by ``exposition``. ``meter`` is the door.
"""
