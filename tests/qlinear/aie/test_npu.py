from qlinear.backends.aie.npu import find_npu


def test_npu_search_says_what_was_found(tmp_path):
    missing = str(find_npu(tmp_path / "accel0", "no_such_module"))
    assert missing == f"no {tmp_path}/accel0 (amdxdna driver), no no_such_module module; every matmul is emulated"
    (tmp_path / "accel0").touch()
    found = find_npu(tmp_path / "accel0", "json")
    assert found.driver and found.runtime
    assert str(found) == f"found {tmp_path}/accel0 (amdxdna driver), found json module; every matmul is emulated"
