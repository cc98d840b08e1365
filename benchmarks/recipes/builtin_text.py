"""Write quantization/texts/builtin/prose.txt, most of the text that models are calibrated on when no other is given.

    python -m benchmarks.recipes.builtin_text

The embedded model goes on from openings of many kinds, in float32, each several times. What it writes is no better
informed than a model of 135 million weights can be; for calibration it is enough that it moves the same channels as
text from the web does. Paragraphs on faiths, peoples, politics, violence and the like are left out, and so are web
addresses: it would not be fair to print what such a model makes of them. torch's generator is seeded; another version
of torch may draw other words.
"""

import re
from pathlib import Path

import torch

from checkpoints.pretrained import open_pretrained

OUTPUT = Path(__file__).parents[2] / "quantization" / "texts" / "builtin" / "prose.txt"
TIMES, NEW_TOKENS, TEMPERATURE, TOP_P = 2, 512, 1.0, 0.95

LEFT_OUT = re.compile(
    r"\b(america|barack|bible|bitch|buddh|christ|church|congress|democrat|drug|fuck|gay|gods?\b|guns?\b|islam|israel|jesus"
    r"|jew(s|ish)?\b|kill|lesbian|murder|muslim|nazi|obama|palestin|politician|president|sex|slave|terror|trump)"
    r"|https?:|www\.",
    re.IGNORECASE,
)

OPENINGS = """\
The city council voted on Tuesday night to
When I was nine years old, my grandmother taught me how to
Preheat the oven to 180 degrees. In a large bowl, mix
The company reported a profit of 42 million dollars in the third quarter,
Photosynthesis is the process by which plants
Dear customers, we would like to inform you that
The match was decided in the last ten minutes, when
If you have ever tried to grow tomatoes on a balcony, you know that
In 1861, shortly after the war had begun, the general
Our hotel is located five minutes from the beach and offers
Researchers at the university have found that people who sleep less than six hours
Q: My car makes a strange noise when I turn left. What could it be?
She closed the door behind her and listened. There was no sound in the house except
The minister said that the new law would
To install the software, first download
The novel tells the story of two sisters who
Welcome back to the blog! Today I want to talk about
The patient was a 54-year-old man who had
There are three main types of bridges:
We are looking for an experienced teacher who
The film opens on a rainy street in Paris, where
This privacy policy explains how we
On the morning of the third day the ship reached
How do I remove a wine stain from a white shirt?
The river rises in the mountains of the north and flows
The album was recorded in a small studio in Nashville and
Investors should be aware that
Many parents worry about how much time their children spend
The temple was built in the twelfth century by
I bought this vacuum cleaner three months ago and
A triangle has three sides. The sum of its angles
The train to London was late again, and so
The court held that the defendant had
Climate change is already affecting
Step 1: Turn off the power. Step 2:
The festival takes place every year in the last week of July and
My sister and I had not spoken for eleven years when
The new phone has a larger screen and
According to the police, the fire started
Vitamin D is important because
The painter was born in a village near Florence, the son of
If x is an even number, then
For sale: a family house with four bedrooms,
"I have never seen anything like it," said
The species lives in the rain forests of South America, where it
Before you sign a contract, make sure that
The band played for almost three hours last night, beginning with
In the beginning of the nineteenth century, most people in Europe
The recipe comes from my friend Maria, who
Voters in the eastern provinces
The engine has four cylinders and produces
Thank you for your letter of 12 March, in which you
Yoga is not only about
The museum is open from Tuesday to Sunday, and
Economists expect that inflation will
The old man at the corner shop always
Students who wish to apply for the scholarship should
The team has won six of its last eight games and
A good photograph depends on
He was elected president of the association in 1978 and
The treaty was signed by
Dogs can hear sounds that
Last summer we drove from Chicago to
The conference will bring together
"""


def write() -> None:
    OUTPUT.write_text(kept(texts()), encoding="utf-8")


def kept(written: list[str]) -> str:
    """The paragraphs of some texts, without those that are left out and those that are empty."""
    paragraphs = "\n\n".join(written).split("\n\n")
    chosen = [paragraph.strip() for paragraph in paragraphs if not LEFT_OUT.search(paragraph)]
    return "\n\n".join(filter(None, chosen)) + "\n"


def texts() -> list[str]:
    source = open_pretrained("smollm2-135m-instruct", False)
    model, tokenizer = source.load().float(), source.tokenizer
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "left"
    prompts = tokenizer(OPENINGS.splitlines(), return_tensors="pt", padding=True)
    torch.manual_seed(0)
    written = []
    for _ in range(TIMES):
        rows = model.generate(
            **prompts, do_sample=True, temperature=TEMPERATURE, top_p=TOP_P, top_k=0,
            min_new_tokens=NEW_TOKENS // 2, max_new_tokens=NEW_TOKENS,
        )  # fmt: skip
        written += [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]
    return written


if __name__ == "__main__":
    write()
