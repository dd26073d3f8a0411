import subprocess
import sys

from emb_model_provider.rss import rss_bytes_of


def test_resident_memory_is_the_kernels_word():
    code = "x = b'1' * 50_000_000; print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        assert 50_000_000 < rss_bytes_of(child.pid) < 200_000_000
        child.communicate(b"\n")
    assert rss_bytes_of(child.pid) == 0
