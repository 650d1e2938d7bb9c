"""Generated arithmetic problems with worked answers: a domain that needs no file."""

import random
from collections.abc import Callable, Iterator

PROBLEMS_PER_DOCUMENT = 12
SEED = 20240


def arithmetic_documents() -> Iterator[str]:
    """Yields documents without end, always the same ones; the reader stops when it has enough."""
    number = 0
    while True:
        generator = random.Random(f"{SEED}/{number}")
        kind = KINDS[number % len(KINDS)]
        yield "\n\n".join(kind(generator) for _ in range(PROBLEMS_PER_DOCUMENT)) + "\n"
        number += 1


def _sum_by_columns(generator: random.Random) -> str:
    first, second = generator.randrange(10, 10**5), generator.randrange(10, 10**5)
    carry, place, lines = 0, 1, []
    while place <= max(first, second):
        left, right = first // place % 10, second // place % 10
        total = left + right + carry
        lines.append(f"{left} + {right} + carry {carry} = {total}: write {total % 10}")
        carry, place = total // 10, place * 10
    return f"Add {first} and {second}.\n" + "\n".join(lines) + f"\nAnswer: {first + second}"


def _product_by_parts(generator: random.Random) -> str:
    first, second = generator.randrange(11, 1000), generator.randrange(11, 100)
    tens, units = second // 10 * 10, second % 10
    return (
        f"Multiply {first} by {second}.\n{first} * {tens} = {first * tens}\n"
        f"{first} * {units} = {first * units}\n"
        f"{first * tens} + {first * units} = {first * second}\nAnswer: {first * second}"
    )


def _division_with_remainder(generator: random.Random) -> str:
    divisor, quotient = generator.randrange(2, 60), generator.randrange(2, 400)
    remainder = generator.randrange(divisor)
    dividend = divisor * quotient + remainder
    return (
        f"Divide {dividend} by {divisor}.\n{divisor} * {quotient} = {divisor * quotient}\n"
        f"{dividend} - {divisor * quotient} = {remainder}\n"
        f"Answer: {quotient} remainder {remainder}"
    )


def _linear_equation(generator: random.Random) -> str:
    factor, solution = generator.randrange(2, 30), generator.randrange(-50, 50)
    shift = generator.randrange(1, 100)
    right = factor * solution + shift
    return (
        f"Solve {factor} x + {shift} = {right}.\n{factor} x = {right} - {shift} = {right - shift}\n"
        f"x = {right - shift} / {factor}\nAnswer: x = {solution}"
    )


def _shopping(generator: random.Random) -> str:
    name = generator.choice(["Ana", "Ben", "Chidi", "Dora", "Emre", "Fatma", "Goro", "Hana"])
    thing = generator.choice(["apples", "pens", "stamps", "cups", "bolts", "eggs", "maps"])
    count, price = generator.randrange(2, 40), generator.randrange(2, 90)
    paid = count * price + generator.randrange(1, 100)
    return (
        f"{name} buys {count} {thing} at {price} cents each and pays with {paid} cents. "
        f"How much change is due?\nThe {thing} cost {count} * {price} = {count * price} cents. "
        f"The change is {paid} - {count * price} = {paid - count * price}.\n"
        f"Answer: {paid - count * price} cents"
    )


def _sequence(generator: random.Random) -> str:
    start, step = generator.randrange(-50, 200), generator.choice([*range(-20, 0), *range(1, 40)])
    terms = [start + step * place for place in range(6)]
    listed = ", ".join(map(str, terms[:5]))
    return (
        f"Continue the sequence {listed}.\nEach term differs from the last by {step}: "
        f"{terms[4]} + {step} = {terms[5]}\nAnswer: {terms[5]}".replace("+ -", "- ")
    )


KINDS: tuple[Callable[[random.Random], str], ...] = (
    _sum_by_columns,
    _product_by_parts,
    _division_with_remainder,
    _linear_equation,
    _shopping,
    _sequence,
)
