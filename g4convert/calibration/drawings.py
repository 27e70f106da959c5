"""The pictures of the bundled texts: scenes, charts, boards, plans and printed words.

They are drawn when they are needed. `texts/pictures.jsonl` says, under their names, what they show.
"""

from collections.abc import Callable, Mapping
from typing import Final

from g4convert.array_types import U8
from g4convert.calibration.canvas import Canvas

WHITE, PAPER, GREY, INK = (255, 255, 255), (244, 239, 226), (150, 154, 160), (28, 30, 38)
RED, ORANGE, YELLOW, GREEN = (206, 52, 44), (236, 140, 40), (246, 208, 70), (58, 140, 72)
BLUE, SKY, SEA, NIGHT, BROWN = (44, 86, 176), (150, 200, 236), (32, 96, 130), (14, 20, 52), (120, 78, 46)


def draw(name: str) -> U8:
    """Draw a bundled picture, uint8 [height, width, 3].

    Raises:
        KeyError: there is none of this name.
    """
    return _DRAWN[name]().done()


def _boat() -> Canvas:
    c = Canvas(400, 260, (246, 170, 96), (250, 222, 160))
    c.disc(300, 120, 34, (255, 240, 190))
    c.box(0, 150, 400, 260, SEA)
    for row in range(158, 256, 14):
        c.line([(20 + row % 40, row), (150 + row % 60, row)], (70, 140, 170), 2)
    c.shape([(90, 170), (230, 170), (205, 200), (115, 200)], RED)
    c.box(157, 60, 162, 170, BROWN)
    c.shape([(166, 66), (226, 160), (166, 160)], WHITE)
    c.shape([(152, 80), (152, 160), (108, 160)], WHITE)
    c.grain(9)
    return c


def _bars() -> Canvas:
    c = Canvas(360, 280, WHITE)
    c.words(60, 10, "VISITORS PER DAY")
    for number, (day, count) in enumerate((("Mon", 40), ("Tue", 65), ("Wed", 30), ("Thu", 85), ("Fri", 120))):
        left = 50 + 60 * number
        c.box(left, 230 - count * 3 // 2, left + 38, 230, ORANGE if day == "Wed" else BLUE)
        c.words(left + 2, 236, day)
        c.words(left + 4, 206 - count * 3 // 2, str(count))
    c.line([(40, 40), (40, 230), (350, 230)], INK, 2)
    return c


def _receipt() -> Canvas:
    c = Canvas(260, 380, PAPER)
    c.words(52, 14, "CORNER BAKERY")
    lines = ("2 rolls     1.80", "1 rye bread 4.20", "3 pretzels  3.60", "1 coffee    2.40")
    for number, text in enumerate(lines):
        c.words(30, 70 + 44 * number, text)
    c.line([(30, 258), (230, 258)], INK, 2)
    c.words(30, 270, "TOTAL      12.00")
    c.words(30, 310, "cash       20.00")
    c.words(30, 340, "change      8.00")
    c.grain(5)
    return c


def _house() -> Canvas:
    c = Canvas(380, 280, SKY, (214, 234, 246))
    c.box(0, 210, 380, 280, GREEN)
    c.disc(330, 46, 26, YELLOW)
    c.box(110, 120, 250, 220, (232, 214, 180))
    c.shape([(180, 60), (270, 120), (90, 120)], RED)
    c.box(165, 160, 195, 220, BROWN)
    for left in (124, 212):
        c.box(left, 138, left + 26, 164, (120, 170, 210))
    c.box(300, 150, 312, 220, BROWN)
    c.disc(306, 130, 36, (44, 112, 60))
    c.grain(10)
    return c


def _shapes() -> Canvas:
    c = Canvas(320, 320, (250, 250, 246))
    for x, y in ((60, 60), (160, 90), (70, 240)):
        c.disc(x, y, 34, RED)
    for left, top in ((220, 50), (210, 220)):
        c.box(left, top, left + 64, top + 64, BLUE)
    c.shape([(150, 170), (190, 240), (110, 240)], YELLOW)
    return c


def _clock() -> Canvas:
    c = Canvas(280, 280, (70, 78, 92))
    c.disc(140, 140, 116, PAPER)
    for x, y, hour in ((128, 34, "12"), (232, 128, "3"), (134, 226, "6"), (36, 128, "9")):
        c.words(x, y, hour)
    c.line([(140, 140), (92, 112)], INK, 8)
    c.line([(140, 140), (140 + 74, 97)], INK, 5)
    c.disc(140, 140, 9, RED)
    return c


def _street() -> Canvas:
    c = Canvas(420, 260, (176, 186, 196), (206, 206, 200))
    c.box(0, 170, 420, 260, (84, 86, 90))
    for left in range(10, 420, 70):
        c.box(left, 210, left + 38, 216, WHITE)
    for left, top, colour in ((0, 40, (150, 90, 70)), (96, 70, (190, 170, 140)), (190, 20, (120, 130, 150))):
        c.box(left, top, left + 92, 170, colour)
        for x in range(left + 14, left + 80, 26):
            for y in range(top + 14, 150, 32):
                c.box(x, y, x + 14, y + 18, (236, 226, 170))
    c.box(352, 70, 358, 180, INK)
    c.box(338, 24, 372, 96, INK)
    for y, colour in ((38, RED), (60, (70, 60, 30)), (82, (30, 60, 36))):
        c.disc(355, y, 9, colour)
    c.box(60, 176, 170, 210, YELLOW)
    c.box(84, 156, 150, 178, (180, 214, 232))
    for x in (84, 148):
        c.disc(x, 212, 14, INK)
    c.grain(12)
    return c


def _temperature() -> Canvas:
    c = Canvas(420, 260, WHITE)
    c.words(90, 8, "TEMPERATURE, APRIL")
    for row, text in ((60, "20"), (120, "10"), (180, " 0")):
        c.line([(50, row), (400, row)], (220, 220, 224), 2)
        c.words(14, row - 10, text)
    heights = (150, 140, 156, 120, 96, 84, 102, 66, 72, 54)
    c.line([(60 + 36 * place, y) for place, y in enumerate(heights)], RED, 4)
    for place, text in ((0, "1"), (4, "5"), (9, "10")):
        c.words(54 + 36 * place, 220, text)
    return c


def _map() -> Canvas:
    c = Canvas(360, 320, (226, 232, 214))
    c.line([(0, 250), (140, 220), (240, 260), (360, 230)], (120, 176, 220), 26)
    for corners in ([(40, 0), (60, 320)], [(0, 90), (360, 70)], [(230, 0), (220, 320)]):
        c.line(corners, WHITE, 14)
    c.line([(52, 190), (46, 88), (226, 78), (224, 150)], RED, 5)
    for x, y, text in ((52, 196, "A"), (224, 156, "B")):
        c.disc(x, y, 15, BLUE)
        c.words(x - 5, y - 11, text, WHITE)
    c.disc(300, 140, 34, (160, 200, 140))
    c.words(276, 130, "PARK")
    return c


def _board() -> Canvas:
    c = Canvas(320, 320, BROWN)
    for row in range(8):
        for column in range(8):
            colour = (236, 216, 178) if (row + column) % 2 == 0 else (150, 102, 66)
            c.box(column * 40, row * 40, column * 40 + 40, row * 40 + 40, colour)
    for column, row, colour in (
        (1, 0, INK),
        (3, 2, INK),
        (6, 1, INK),
        (2, 5, WHITE),
        (4, 5, WHITE),
        (5, 6, WHITE),
        (0, 7, WHITE),
    ):
        c.disc(column * 40 + 20, row * 40 + 20, 15, GREY)
        c.disc(column * 40 + 20, row * 40 + 20, 13, colour)
    return c


def _mountains() -> Canvas:
    c = Canvas(420, 250, NIGHT, (60, 66, 120))
    for number in range(40):
        c.disc(number * 97 % 420, number * 53 % 120, 1, WHITE)
    c.disc(330, 60, 30, (246, 240, 214))
    c.disc(318, 54, 26, (22, 28, 62))
    c.shape([(120, 70), (240, 250), (0, 250)], (52, 58, 84))
    c.shape([(120, 70), (142, 104), (96, 104)], (226, 232, 240))
    c.shape([(270, 110), (400, 250), (150, 250)], (38, 44, 68))
    c.box(0, 226, 420, 250, (18, 30, 34))
    c.box(196, 206, 226, 230, (70, 52, 40))
    c.box(206, 212, 216, 222, YELLOW)
    c.grain(6)
    return c


def _code() -> Canvas:
    c = Canvas(430, 240, (30, 34, 42))
    lines = (
        "def mean(values):",
        "    total = 0",
        "    for one in values:",
        "        total += one",
        "    return total / len(value)",
    )
    for number, text in enumerate(lines):
        c.words(12, 16 + 30 * number, f"{number + 1}  {text}", (200, 210, 220))
    c.box(0, 180, 430, 240, (62, 28, 30))
    c.words(12, 188, "NameError: line 5", (250, 150, 140))
    c.words(12, 212, "'value' is not defined", (250, 150, 140))
    return c


def _plan() -> Canvas:
    c = Canvas(380, 300, PAPER)
    c.line([(20, 20), (360, 20), (360, 280), (20, 280), (20, 20)], INK, 6)
    c.line([(200, 20), (200, 130)], INK, 4)
    c.line([(20, 170), (120, 170)], INK, 4)
    c.line([(170, 170), (360, 170)], INK, 4)
    c.line([(250, 170), (250, 280)], INK, 4)
    for x, y, text in ((70, 80, "KITCHEN"), (240, 80, "BEDROOM"), (80, 220, "LIVING ROOM"), (274, 220, "BATH")):
        c.words(x, y, text)
    c.box(28, 28, 60, 60, GREY)
    c.box(300, 30, 352, 66, (160, 190, 220))
    return c


def _poster() -> Canvas:
    c = Canvas(280, 390, (32, 74, 88), (18, 40, 58))
    c.words(34, 30, "OPEN AIR", YELLOW, 4)
    c.words(52, 80, "CINEMA", YELLOW, 4)
    c.box(50, 150, 230, 250, (240, 240, 232))
    c.disc(140, 200, 30, (200, 204, 210))
    c.shape([(132, 184), (160, 200), (132, 216)], RED)
    c.words(40, 280, "Friday 18 July", WHITE)
    c.words(40, 310, "at 21:30", WHITE)
    c.words(40, 340, "Entry 6 euros", WHITE)
    return c


def _shelf() -> Canvas:
    c = Canvas(400, 240, (206, 196, 180))
    for top in (110, 220):
        c.box(10, top, 390, top + 12, BROWN)
    left = 20
    for number, width in enumerate((26, 34, 20, 40, 28, 22, 36)):
        colour = (RED, BLUE, GREEN, ORANGE, (110, 70, 130), YELLOW, SEA)[number]
        c.box(left, 36 + number * 13 % 24, left + width, 110, colour)
        left += width + 4
    c.disc(320, 84, 26, (190, 110, 80))
    c.box(314, 30, 326, 64, GREEN)
    for x, colour in ((60, RED), (130, GREEN), (200, RED)):
        c.disc(x, 194, 26, colour)
    c.box(270, 170, 350, 220, (140, 150, 170))
    c.grain(10)
    return c


def _calendar() -> Canvas:
    c = Canvas(380, 300, WHITE)
    c.box(0, 0, 380, 44, RED)
    c.words(110, 10, "JUNE 2031", WHITE, 3)
    for place, letter in enumerate("MTWTFSS"):
        c.words(26 + 50 * place, 54, letter, GREY)
    for day in range(1, 31):
        row, column = divmod(day + 5, 7)
        x, y = 20 + 50 * column, 84 + 36 * row
        if day in {12, 13}:
            c.box(x - 6, y - 4, x + 36, y + 26, YELLOW)
        c.words(x, y, f"{day:2d}")
    return c


_DRAWN: Final[Mapping[str, Callable[[], Canvas]]] = {
    "boat": _boat,
    "bars": _bars,
    "receipt": _receipt,
    "house": _house,
    "shapes": _shapes,
    "clock": _clock,
    "street": _street,
    "temperature": _temperature,
    "map": _map,
    "board": _board,
    "mountains": _mountains,
    "code": _code,
    "plan": _plan,
    "poster": _poster,
    "shelf": _shelf,
    "calendar": _calendar,
}
"""Drawing of each bundled picture, by its name."""
