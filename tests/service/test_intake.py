"""What an answer says of its upload, what the metrics count, and the room that bodies share."""

from __future__ import annotations

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from service.uploads import Held, Room
from tests.service.http_helpers import digit, image_bytes

PNG = {"Content-Type": "image/png"}


def paper() -> bytes:
    """A black one on white, four times as large."""
    return image_bytes(image=Image.fromarray(255 - np.kron(np.asarray(digit()), np.ones((4, 4), np.uint8))))


@pytest.mark.parametrize("path", ["/dream", "/features", "/energy"])
def test_answers_say_whether_the_upload_was_inverted(client: TestClient, path: str) -> None:
    for content, inverted in ((paper(), True), (image_bytes(), False)):
        answer = client.post(f"{path}?format=json", content=content, headers=PNG)
        assert answer.json()["inverted"] == [inverted]
        assert answer.headers["RBM-Inverted"] == str(inverted).lower()


def test_several_uploads_tell_it_one_by_one(client: TestClient) -> None:
    answer = client.post("/energy", files=[("file", paper()), ("file", image_bytes())])
    assert answer.json()["inverted"] == [True, False] and "RBM-Inverted" not in answer.headers


def count(client: TestClient, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def test_bytes_and_decodes_are_counted(client: TestClient) -> None:
    content, decodes = paper(), count(client, "rbm_decode_seconds_count")
    received, sent = count(client, "rbm_received_bytes_total"), count(client, "rbm_sent_bytes_total")
    answer = client.post("/dream", content=content, headers=PNG)
    assert count(client, "rbm_received_bytes_total") - received == len(content)
    assert count(client, "rbm_sent_bytes_total") - sent > len(answer.content)
    assert count(client, "rbm_decode_seconds_count") - decodes == 1


def test_room_is_bounded_and_given_back() -> None:
    room, first, second = Room(100), Held(), Held()
    assert first.take(room, 60)
    assert not second.take(room, 41)
    first.release()
    assert second.take(room, 100)
    second.release()
    assert room.num_bytes == 0
