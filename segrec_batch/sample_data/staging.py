"""Staging: where the camera stands in one image of a place, and what stands in front of it."""

from __future__ import annotations

import math

import numpy as np

from segrec_batch.sample_data.cars import Car, car_depth
from segrec_batch.sample_data.layout import flora
from segrec_batch.sample_data.paint import Rng, View, between, new_seed
from segrec_batch.sample_data.people import Person
from segrec_batch.sample_data.places import Lane, Place, Prop
from segrec_batch.sample_data.trees import Tree

Thing = Car | Person | Tree | Prop

_SHARES = {"street": 0.4, "car": 0.23, "person": 0.16, "tree": 0.16, "quiet": 0.05}


def choose_subject(rng: Rng, place: Place) -> str:
    """Choose the subject: street (the place), quiet (the empty place), or a close object.

    The close ones are car, person and tree.
    """
    subject = str(rng.choice(list(_SHARES), p=list(_SHARES.values())))
    return "person" if subject == "car" and not place.lanes else subject


def choose_view(rng: Rng, place: Place, subject: str, size: tuple[int, int]) -> View:
    """Move the camera of the place a little; `size` is the canvas's (width, height).

    Close subjects are seen from eye level, trees from below.
    """
    width, height = size
    horizon, eye = place.horizon + between(rng, -0.05, 0.05), place.eye
    if subject == "tree":
        horizon = between(rng, 0.6, 0.85)
    elif subject in ("car", "person"):
        horizon, eye = between(rng, 0.3, 0.5), min(eye, between(rng, 1.2, 1.8))
    return View(
        width=width,
        height=height,
        focal=place.focal * height * between(rng, 0.9, 1.12),
        horizon=horizon * height,
        eye=eye * between(rng, 0.95, 1.05),
        yaw=place.yaw + between(rng, -0.12, 0.12),
        x=place.x + between(rng, -0.5, 0.5),
        z=between(rng, -4, 4),
    )


def choose_things(rng: Rng, place: Place, view: View, subject: str) -> list[Thing]:
    """Everything that stands on the ground and may be seen, far things first."""
    close = _close_up(rng, view, subject)
    clear = max([5.0] + [_depth(view, thing) + 2.0 for thing in close])
    crowd = {"street": 1.0, "quiet": 0.0}.get(subject, 0.4)
    others: list[Thing] = [*place.trees, *place.props]
    if rng.random() < 0.8:
        others += _traffic(rng, place, view, int(rng.poisson(9 * crowd)))
    if rng.random() < 0.75:
        others += _walkers(rng, place, view, int(rng.poisson(5 * crowd)))
    seen = [t for t in others if clear < _depth(view, t) < 90 and _in_view(view, t)]
    return sorted([*seen, *close], key=lambda thing: -_depth(view, thing))


def _depth(view: View, thing: Thing) -> float:
    return float(view.turn(np.array([thing.x, 0.0, thing.z]))[2])


def _in_view(view: View, thing: Thing) -> bool:
    """Return whether a thing of at most 6 m to each side, or its shadow, may be in view."""
    spot = view.turn(np.array([[thing.x, 0.0, thing.z]]))
    return view.frames(spot[:, 0], spot[:, 2], 6.0)


def _close_up(rng: Rng, view: View, subject: str) -> list[Thing]:
    """Objects so near that they fill much of the image."""
    if subject == "car":
        return _close_car(rng, view)
    if subject == "person":
        return _close_group(rng, view)
    if subject == "tree":
        depth = between(rng, 2.6, 5.5)
        x, z = _aside(rng, view, 0.5, depth)
        kind, leaf = flora(rng, ("broad", "broad", "conifer", "broad", "column"))
        height, low = between(rng, 5, 9), between(rng, 0.2, 1.6)
        return [Tree(x, z, kind, height, low, leaf, new_seed(rng))]
    return []


def _aside(rng: Rng, view: View, share: float, depth: float) -> tuple[float, float]:
    """Choose a ground point (x, z) at a depth, at most `share` of half the image off its middle."""
    return view.unturn(between(rng, -share, share) * view.width / 2 / view.focal * depth, depth)


def _close_group(rng: Rng, view: View) -> list[Thing]:
    """One to four persons side by side."""
    count, depth = 1 + int(rng.integers(4)), between(rng, 0.7, 1.6)
    half = view.width / 2 / view.focal
    group: list[Thing] = []
    for place in range(count):
        share = (2 * place + 1) / count - 1 + between(rng, -0.15, 0.15)
        away = depth * between(rng, 1.0, 1.45)
        group.append(Person(*view.unturn(0.8 * share * half * away, away), new_seed(rng)))
    return group


def _close_car(rng: Rng, view: View) -> list[Thing]:
    """One car, its nearest corner a few metres away, at times with a person in front of it."""
    heading, look, near = between(rng, 0, 2 * math.pi), new_seed(rng), between(rng, 1.0, 3.4)
    probe = Car(*view.unturn(0.0, 20.0), heading, look)
    x, z = _aside(rng, view, 0.35, near + 20.0 - car_depth(view, probe))
    things: list[Thing] = [Car(x, z, heading, look)]
    if near > 2.4 and rng.random() < 0.3:
        things.append(Person(*_aside(rng, view, 0.7, near - 0.4), new_seed(rng)))
    return things


def _spot(rng: Rng, view: View, far: float) -> tuple[float, float]:
    """Choose a ground point (x, z) in view, 5 m to `far` away, uniform in log distance."""
    return _aside(rng, view, 1.1, 5.0 * (far / 5.0) ** between(rng, 0, 1))


def _snap(rng: Rng, lane: Lane, z: float) -> Car:
    """Place a car in the lane, in one of its bays if it has any."""
    if lane.pitch:
        z = round(z / lane.pitch) * lane.pitch
    back = math.pi if lane.pitch and rng.random() < 0.2 else 0.0
    heading = lane.heading + back + between(rng, -0.05, 0.05)
    return Car(lane.x + between(rng, -0.2, 0.2), z, heading, new_seed(rng))


def _traffic(rng: Rng, place: Place, view: View, count: int) -> list[Thing]:
    """Cars in lanes and bays, none inside another."""
    cars: list[Thing] = []
    for _ in range(count if place.lanes else 0):
        x, z = _spot(rng, view, min(45.0, place.reach))
        nearest = sorted(place.lanes, key=lambda lane: abs(lane.x - x))[:2]
        car = _snap(rng, nearest[int(rng.integers(len(nearest)))], z)
        room = 2.2 if abs(math.sin(car.heading)) > 0.7 else 5.6
        if all(abs(c.x - car.x) > 2.1 or abs(c.z - car.z) > room for c in cars):
            cars.append(car)
    return cars


def _walkers(rng: Rng, place: Place, view: View, count: int) -> list[Thing]:
    """Persons on pavements, some of them anywhere."""
    people: list[Thing] = []
    for _ in range(count):
        x, z = _spot(rng, view, min(40.0, place.reach))
        low, high = min(place.walks, key=lambda walk: max(walk[0] - x, x - walk[1], 0.0))
        if not low < x < high and rng.random() < 0.8:
            x = between(rng, low, high)
        if z < place.reach:
            people.append(Person(x, z, new_seed(rng)))
    return people
