"""Word lists, sentence templates and plots of the built-in stories (no text of TinyStories is in here).

`tell(rng)` makes one story of 80 to 200 words. A slot such as `{noun}` draws a fresh word of that list, never
one that the same story has had; the slots of `_cast` (`{name}`, `{friend}`, `{thing}`, `{place}`, `{boss}`,
pronouns) keep one value through a story. Templates are written so that almost every sentence has two or more
open slots: a few dozen stories cover only a part of what can be said, so a model that learns them by heart is
worse on new ones.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable


def _split(words: str) -> tuple[str, ...]:
    """Words separated by blanks; an underscore stands for a blank inside an entry."""
    return tuple(word.replace("_", " ") for word in words.split())


GIRLS = _split(
    "Ada Agnes Alma Bettina Bree Calla Cora Delphine Dora Edith Elka Fern Flora Greta Hattie Hazel Ida "
    "Ines Juna Kaya Lotte Luz Mabel Marit Mina Nadia Nell Odile Opal Petra Pippa Quilla Ramona Rosa "
    "Sanna Selma Tamsin Tilda Una Vera Wanda Willa Xenia Yara Zadie Zofia"
)
BOYS = _split(
    "Abel Alvin Anton Barnaby Bruno Casper Cyril Dmitri Edgar Elio Emil Felix Finn Gideon Gus Hamid "
    "Hugo Igor Ivo Jasper Joaquin Kofi Lars Leopold Milo Moses Nico Noor Olaf Oscar Otis Pavel Percy "
    "Quentin Rafi Remy Rufus Silas Sven Tariq Theo Ulric Viktor Wendell Yusuf Zeke"
)
WORDS: dict[str, tuple[str, ...]] = {
    "animal": _split(
        "badger beetle bison camel cat chipmunk crane cricket crow deer dog donkey dove dragonfly duck "
        "eagle ferret finch fox frog gecko giraffe goat goose hamster hare hedgehog hen heron horse kitten "
        "koala lamb lizard llama magpie mole moose mouse newt otter owl panda parrot pelican penguin pig "
        "pony puffin puppy rabbit raccoon raven robin seal sheep shrew skunk snail sparrow squirrel stork "
        "swan tiger toad tortoise turkey turtle walrus weasel wolf wombat wren zebra"
    ),
    "noun": _split(
        "anchor apron balloon banjo basket bell belt blanket boat bobbin book bottle bow bowl box bracelet "
        "broom brush bucket button cabbage candle cap cape card carpet cart chair chalk chest clock coin "
        "comb compass cork cradle crate crown cup curtain cushion dish drawing drum fan feather fiddle "
        "fishing_rod flag flute fork glove goblet hammer hammock harp hat helmet hook horn jar jug kettle "
        "key kite ladder lamp lantern locket loom magnet map marble mask medal mirror mitten mug music_box "
        "nail necklace needle net notebook paddle paintbrush painting pan parcel pencil pillow pinecone "
        "pipe plate pot postcard pouch puppet purse puzzle quilt rake ribbon ring robe rocket rope rug "
        "saddle sail sandal saw scarf seashell shawl shield shovel skate sled slipper spade spoon spyglass "
        "stamp stool suitcase teapot telescope tent thimble toy_train trumpet tub tunic vase violin wagon "
        "wand wheel wheelbarrow whistle wreath"
    ),
    "place": _split(
        "attic bakery barn beach bridge cabin canal castle cave chapel cliff cottage courtyard creek dock "
        "farmyard ferry field fountain garden gate glade greenhouse harbor haystack hill hut inn island "
        "jetty lagoon lake library lighthouse market marsh meadow mill mine museum orchard park pasture "
        "path pier playground pond quarry railway ranch reef ridge river school shed shipyard shop stable "
        "station stream swamp temple theater tower town_hall treehouse tunnel valley vineyard village wall "
        "waterfall well windmill workshop yard zoo"
    ),
    "plural": _split(
        "acorns apples ashes beads berries blossoms boots branches bricks bubbles butterflies cards "
        "chestnuts clouds cobwebs corks crumbs daisies eggs envelopes feathers fireflies flowerpots "
        "footprints gloves icicles jars keys ladders leaves lemons letters lilies marbles mushrooms nuts "
        "onions paddles pebbles petals pickles pigeons pinecones planks plums potatoes puddles pumpkins "
        "puppets raindrops ribbons roots roses seeds shadows sheets shells snowflakes socks sparks stars "
        "sticks stones straws strings tadpoles thistles tickets tiles tulips turnips twigs vines violets "
        "walnuts waves whiskers worms"
    ),
    "food": _split(
        "apple_tart bean_stew beet_soup biscuits bread butter cake caramel carrots cheese cherries "
        "chocolate cinnamon_rolls cocoa corn crackers custard dates dumplings figs fudge ginger_cookies "
        "grapes gravy honey jam jelly lentils lemonade mango melon milk muffins noodles nutmeg_pie oatmeal "
        "olives omelets oranges pancakes peaches peanuts pears pie plum_pudding popcorn porridge pretzels "
        "raisins rice sandwiches sausages scones spinach strawberries syrup toast tomatoes waffles yogurt"
    ),
    "adj": _split(
        "ancient bent big blunt bright bumpy cheap chipped clean clever cold cracked creaky crooked curly "
        "damp dark deep delicate dented dry dusty elegant empty enormous faded fancy fine flat fragile "
        "fresh frosty funny furry fuzzy giant gleaming glossy gorgeous grand greasy hairy handsome heavy "
        "hollow huge icy knobbly large lonely long lopsided loud lovely lumpy magic massive messy mossy "
        "muddy narrow neat new noisy odd old ordinary painted peculiar plain pointed polished precious "
        "pretty quiet ragged rare round rough rusty scratched secret shabby shaggy sharp shiny silky simple "
        "slim slippery small smelly smooth soft solid sparkling splendid spotted square sticky stiff "
        "strange striped strong sturdy tall tangled tattered thick thin tidy tiny torn twisted velvet warm "
        "wet wide wild wobbly wonderful wooden woolen wrinkled"
    ),
    "colour": _split(
        "amber black blue bronze brown coral crimson golden gray green indigo ivory lilac maroon orange "
        "pink purple red rosy scarlet silver teal turquoise violet white yellow"
    ),
    "trait": _split(
        "bold brave busy careful cautious cheeky cheerful clumsy curious daring dreamy eager earnest "
        "fearless fidgety forgetful friendly generous gentle giggly graceful grumpy helpful hopeful humble "
        "impatient inventive jolly kind lazy lively loyal merry mischievous modest nimble nosy patient "
        "playful polite proud quick restless sensible serious shy silly sleepy sly stubborn talkative "
        "thoughtful timid tireless trusting witty"
    ),
    "sad": _split(
        "afraid alarmed angry anxious ashamed bitter bored confused crushed disappointed dismayed "
        "embarrassed exhausted foolish frightened furious gloomy glum guilty helpless homesick hopeless "
        "hurt jealous lost miserable nervous puzzled sad scared shaken small sorry startled tearful tired "
        "troubled uneasy unhappy upset weary worried"
    ),
    "glad": _split(
        "amazed amused blissful bouncy brave calm certain cheerful content delighted ecstatic excited "
        "fortunate glad grateful happy hopeful jolly joyful joyous light lucky merry peaceful pleased proud "
        "relieved rested safe satisfied snug strong surprised thankful thrilled warm wise"
    ),
    "adv": _split(
        "anxiously awkwardly blindly boldly bravely briskly calmly carefully cautiously cheerfully clumsily "
        "eagerly earnestly faithfully fiercely firmly frantically gently gladly gracefully greedily happily "
        "hastily hopefully lazily lightly loudly merrily neatly nervously nimbly noisily patiently "
        "playfully politely proudly quickly quietly rapidly sadly shyly silently sleepily slowly smoothly "
        "softly solemnly steadily stubbornly suddenly swiftly tenderly thoughtfully tightly warmly wearily "
        "wildly wisely"
    ),
    "moved": _split(
        "ambled bounced charged climbed crawled crept danced darted dashed drifted galloped hiked hobbled "
        "hopped hurried jogged leaped limped marched paced paddled plodded pranced raced rambled ran rolled "
        "rushed sailed scampered scrambled scurried shuffled skipped slid slipped sneaked sprinted "
        "staggered strolled strutted stumbled swam tiptoed toddled traveled trotted trudged waddled walked "
        "wandered zigzagged zoomed"
    ),
    "said": _split(
        "announced answered begged boomed called chirped chuckled cried croaked declared exclaimed "
        "explained gasped giggled grumbled hummed insisted joked laughed mumbled murmured muttered promised "
        "remarked replied said shouted sighed sniffled sobbed squeaked stammered suggested urged wailed "
        "whimpered whispered yelled"
    ),
    "sounded": _split(
        "banged bubbled buzzed chimed clanged clattered clicked crackled creaked crunched dripped fizzed "
        "fluttered groaned gurgled hissed hooted howled hummed jingled moaned murmured popped rattled "
        "roared rumbled rustled scraped scratched shrieked sizzled snapped splashed squealed thudded "
        "thumped ticked tinkled wailed whirred"
    ),
    "did": _split(
        "arranged bandaged borrowed carried carved cleaned covered decorated dragged dusted emptied "
        "examined fetched filled fixed flipped folded gathered glued grabbed hid hugged inspected juggled "
        "kicked knotted lifted measured mended nudged opened packed painted patted patched planted poked "
        "polished pulled pushed raised repaired scrubbed shook sorted squeezed stacked stirred swept tapped "
        "tickled tied tossed trimmed tugged turned twisted unlocked untied washed watered wiped wrapped"
    ),
    "hobby": _split(
        "baking boating camping carving climbing cooking counting cycling dancing digging diving drawing "
        "drumming exploring farming fishing flying gardening hiding hiking inventing juggling jumping "
        "knitting painting racing reading riding rowing running sailing sewing singing skating sledding "
        "spinning stargazing storytelling swimming swinging tumbling weaving whistling wrestling writing"
    ),
    "job": _split(
        "acrobat actor artist astronomer baker barber beekeeper blacksmith builder butcher captain "
        "carpenter clown cobbler cook dancer dentist doctor driver farmer firefighter fisherman florist "
        "gardener goldsmith guard inventor janitor jeweler judge juggler king knight librarian locksmith "
        "magician mayor merchant miller miner musician nurse painter pilot pirate poet porter postman "
        "potter prince princess queen ranger sailor scholar shepherd shoemaker singer soldier tailor "
        "teacher trader waiter watchmaker weaver wizard woodcutter"
    ),
    "elder": _split(
        "aunt brother cousin father godmother grandfather grandmother guardian mother neighbor sister stepfather uncle"
    ),
    "tree": _split(
        "alder ash aspen bamboo beech birch bramble cedar chestnut cypress elm fig fir hawthorn hazel holly "
        "ivy juniper larch laurel linden maple oak palm pine poplar rowan spruce sycamore walnut willow yew"
    ),
    "stuff": _split(
        "bark brass canvas cardboard clay cloth copper cotton felt glass gold iron lace leather linen "
        "marble metal paper pearl plaster porcelain rubber sand silk stone straw tin wax wicker wire wood "
        "wool yarn"
    ),
    "sky": _split(
        "breezy bright chilly clear cloudless cloudy cool crisp dewy drizzly dull foggy frosty gloomy hazy "
        "hot icy mild misty moonlit rainy scorching snowy starry stormy stuffy sultry sunny thundery warm "
        "windy wintry"
    ),
    "part": _split(
        "afternoon autumn_day dawn day evening Friday holiday midday Monday morning night Saturday "
        "spring_day summer_day Sunday Thursday Tuesday Wednesday winter_day"
    ),
    "when": _split(
        "after_breakfast after_dinner after_lessons after_lunch at_bedtime at_daybreak at_dusk "
        "at_first_light at_midnight at_noon at_sundown at_sunrise at_supper at_teatime before_breakfast "
        "before_dark before_lunch before_supper in_the_evening next_morning"
    ),
    "body": _split(
        "ankle arm back belly cheek chin ear elbow eye finger foot forehead hand head heart heel knee leg "
        "mouth neck nose shoulder stomach thumb toe wrist"
    ),
    "number": _split("two three four five six seven eight nine ten eleven twelve fifteen twenty thirty forty fifty"),
    "value": _split(
        "courage curiosity effort forgiveness friendship generosity gentleness honesty humor kindness "
        "laughter listening patience practice promises sharing teamwork trust truth wisdom"
    ),
    "wow": _split(
        "Ah Aha Bravo Dear_me Goodness Gosh Great_news Hello Hey Hooray Hurry Look Listen My_goodness "
        "My_word Oh Oh_dear Oh_no Please Quick Wait Well Whoops Wow Yes"
    ),
}

OPENINGS = (
    "{name} was a {trait} {kind} who lived near the {adj} {place0} with {his} {elder}.",
    "Long ago, a {trait} {kind} named {name} lived between a {place0} and a {adj} {place1}.",
    "On a {sky} {part}, a {kind} called {name} {moved} to the {place}.",
    "There once was a {kind}, {name}, who was {trait} and sometimes a little {trait}.",
    "Behind the {adj} {place0} there stood a {colour} house, and in it lived {name}, a {trait} {kind}.",
    "Everyone near the {place} knew {name}, the {trait} {kind} with the {colour} {noun}.",
    "It was a {sky} {part} when {name} the {kind} found a {adj} {noun} by the {place}.",
    "Have you heard of {name}? {He} was a {trait} {kind} who wanted to be a {job}.",
    "In a {adj} {place0} under the {tree} trees lived {name}, a {kind} with a {trait} {elder}.",
    "Far from the {place1}, a {trait} young {kind} named {name} was {hobby} beside a {adj} {tree}.",
    "The {part} was {sky}, so {name} the {kind} put on a {colour} {noun} and {moved} outside.",
    "When {name} was a very young {kind}, {he} shared a {adj} room with {number} {plural} and a {noun}.",
)
SETTINGS = (
    "{He} loved {hobby}, but {he} liked {hobby} even more.",
    "{His} best friend was {friend}, a {trait} {fkind} who was always {hobby}.",
    "The air smelled of {food} and {food}, and the {tree} leaves were {colour}.",
    "Every {part}, {he} {did} a {adj} {noun} and ate {food} with {his} {elder}.",
    "{His} {elder}, who was a {job}, kept {number} {adj} {plural} in a {noun}.",
    "Somewhere a {noun} {sounded}, and a {colour} {animal} {moved} by.",
    "In {his} pocket {he} carried a {stuff} {noun} and {number} {plural}.",
    "Of all the things {he} had, {he} liked {his} {adj} {colour} {noun} the most.",
    "The {place} was full of {adj} {plural}, and {he} knew the name of each {animal} there.",
    "{He} had a {adj} {body} from {hobby} and a {trait} way of {hobby}.",
    "Rain had left {plural} on the {place1}, and the {tree} trees {sounded} in the wind.",
    "From the window {he} could see a {place1}, {number} {plural} and a {adj} {tree}.",
)
FEELINGS = (
    "{name} felt {sad} and {sad}, and {his} {body} began to shake.",
    "This made {him} {sad}, and not even {food} could help.",
    "{He} sat down on a {adj} {noun} and was {sad} for a while.",
    '"{wow}! What will my {elder} say?" {name} {said} {adv}.',
    "{He} was so {sad} that {he} {did} a {noun} and {moved} in circles.",
    "A {adj} tear fell on {his} {body}, because {he} felt {sad}.",
    "{name} had never been so {sad}, except once near a {adj} {place1}.",
    '"I feel {sad}," {he} {said} to a {noun}, but the {noun} only {sounded}.',
)
MEETINGS = (
    "Just then {friend} the {fkind} {moved} along with a {noun} full of {food}.",
    "A {trait} {fkind} named {friend} was {hobby} nearby and looked up {adv}.",
    "Then {friend}, the {fkind}, {moved} out from behind a {adj} {tree}.",
    "{He} {moved} to {friend} the {fkind}, who was {hobby} with a {job}.",
    "Something {sounded} in the {tree}. It was {friend}, a {fkind} with a {colour} {noun}!",
    "After {number} minutes {he} met {friend}, a {trait} {fkind} who sold {food} near the {place1}.",
    "The {place1} door {sounded}, and out came {friend} the {fkind}, {fhis} {body} covered with {food}.",
)
ASKING = (
    '"{wow}, why do you look so {sad}?" asked {friend}. "Is it about the {thing}?"',
    '"{wow}! You need a {adj} {noun} and some {food}," {friend} {said} {adv}.',
    '{friend} {did} {fhis} {noun} {adv}. "I am only a {fkind}, but I know about {plural}," {fhe} {said}.',
    '"My {elder2} is a {job}," {said} {friend}, "and always says that {value} is better than {plural}."',
    '"Tell me," {friend} {said}, "have you looked at it as a {job} or a {animal} would?"',
    '"{wow}," {said} {friend}. "A {trait} {kind} and a {trait} {fkind} can do anything {when}."',
    '{friend} listened {adv}, and {fhis} {body} moved like a {animal}. "{wow}," {fhe} {said}.',
)
THANKS = (
    '"{wow}! You are as {trait} as a {animal}," {name} {said} {adv}.',
    "{name} gave {friend} a {adj} {noun} and some {food} to say thank you.",
    '"Thank you, {friend}," {name} {said}. "Would you like my {colour} {noun}?"',
    "{name} felt {glad}, and {friend} was {glad} too, so they ate {food} with {food}.",
    '"I could not have done it without a {trait} {fkind}," {he} {said} {adv}.',
    "{His} {elder} {did} a {noun} for {friend} and made {food} for everyone.",
)
ENDINGS = (
    "{when_cap} they went {hobby} together, {glad} and {glad}.",
    "That {part} {he} fell asleep beside the {noun} and dreamed of {adj} {plural}.",
    "From then on, {name} and {friend} met at the {place1} every {part}.",
    "They {moved} home past the {place1}, singing about a {trait} {animal}.",
    "Even the {trait} {job} of the {place1} was {glad} and {did} a {noun}.",
    "And if you visit the {place1}, you may still see a {colour} {noun} and {number} {plural} there.",
    "The sky turned {colour}, a {noun} {sounded}, and {name} was {glad}.",
)
LESSONS = (
    "{name} learned that {value} and {value} can be stronger than any {noun}.",
    '"A little {value} is worth {number} {plural}," {his} {elder} {said}.',
    "Since that {part}, {he} has known that a {trait} friend needs {value}.",
    "{He} never forgot that {value} matters more than a {adj} {noun}.",
    "Now {he} tells every {animal} that {value} begins with {value}.",
    "It is better to be {trait} with a friend than {trait} alone, thought {name}, and {did} {his} {noun}.",
)

# One row a plot: trouble, attempt, turn, result. `{thing}` is the object the story is about.
PLOTS: tuple[tuple[tuple[str, ...], ...], ...] = (
    (  # something is lost
        (
            "But {when} {his} {adj} {thing} was gone from the {place}.",
            "Then, while {hobby}, {name} dropped {his} {thing} among the {adj} {plural}.",
            "One {sky} {part} a {animal} {moved} off with the {colour} {thing} of {his} {elder}.",
        ),
        (
            "{He} looked under a {noun}, behind the {plural} and inside a {adj} {noun}.",
            "{He} {moved} from the {place} to the {place1}, asking a {job} and a {trait} {animal}.",
            "{He} {did} every {noun} in the {place}, but found only {plural} and an old {noun}.",
        ),
        (
            "Together they followed {number} {adj} {plural} to the {place1}.",
            "{friend} saw a trail of {food} that went {adv} around the {tree}.",
            "With a {stuff} {noun}, {friend} {did} the {adj} {plural} away.",
        ),
        (
            "There was the {thing}, under a {colour} {noun}, guarded by a {trait} {animal}.",
            "A {animal} had made its bed in the {thing}, with {plural} and a {noun} around it.",
            "The {thing} hung on a {tree}, as {adj} as ever, next to {number} {plural}.",
        ),
    ),
    (  # somebody is stuck
        (
            "{when_cap} {he} heard a {animal} crying inside a {adj} {noun} near the {place}.",
            "At the {place} a {adj} {animal} had its {body} caught in a {stuff} {thing}.",
            "While {hobby}, {name} fell {adv} into a {adj} hole full of {plural}.",
        ),
        (
            "{He} pulled {adv} with a {noun}, but the {plural} only {sounded}.",
            "{He} tried a {stuff} {noun}, then a {noun}, and at last {food}.",
            "{He} called for a {job}, yet only a {trait} {animal} {moved} past.",
        ),
        (
            "{friend} tied a {noun} to the {tree} and {moved} {adv} backward.",
            "They put {food} on the {adj} {plural} and counted to {number}.",
            "{friend} {did} the {thing} with {fhis} {body} while {name} held a {noun}.",
        ),
        (
            "The {thing} {sounded}, something went pop, and everyone rolled into the {plural}!",
            "Out it came {adv}, covered with {plural} and {food}, but {glad}.",
            "At last there was room for a {body}, then a {body}, and then it was over.",
        ),
    ),
    (  # something must be made
        (
            "{His} {elder} had a birthday {when}, and {name} wanted to make a {colour} {thing}.",
            "The {boss} of the {place} needed a {adj} {thing} before the {sky} {part}.",
            "{name} had a plan: a {thing} of {stuff}, as {adj} as a {noun}.",
        ),
        (
            "{He} {did} {number} {plural} and a {noun}, but the {thing} fell to pieces.",
            "The {stuff} was too {adj}, and the {plural} were too {adj}.",
            "{He} worked {adv} until dark, and still it looked like a {adj} {animal}.",
        ),
        (
            "{friend} brought {stuff} from the {place1} and {did} it {adv}.",
            '"First {stuff}, then {plural}," {friend} {said}, and showed {him} how a {job} does it.',
            "They {did} the {stuff}, added a {colour} {noun}, and waited for a {sky} {part}.",
        ),
        (
            "When it was done, the {thing} was {adj} and {adj}, and it {sounded} {adv}.",
            "The {thing} stood in the {place}, {colour} and {colour}, with {plural} on top.",
            "{His} {elder} looked at the {thing} {adv} and felt {glad}.",
        ),
    ),
    (  # somebody is new and shy
        (
            "A new {fkind} had come to the {place}, but {name} was too {sad} to speak.",
            "At the {place} all the others were {hobby}, and {name} stood alone with a {thing}.",
            "Nobody came to {his} {noun} party, though there was {food} and a {adj} {thing}.",
        ),
        (
            "{He} hid behind a {adj} {noun} and counted {plural}.",
            '{He} practiced {adv} with a {noun}: "{wow}, I am {name} and I like {food}."',
            "{He} {did} the {thing} {adv}, hoping that a {animal} would notice.",
        ),
        (
            "{friend} had the same {thing}, only {colour}, and liked {hobby} too!",
            '"Is that {food}?" {friend} {said}. "I will give you {number} {plural} for it."',
            "{friend} {moved} closer {adv} and showed {him} a {adj} {noun}.",
        ),
        (
            "Soon they were {hobby} with {plural} and laughing at a {trait} {animal}.",
            "They built a {noun} of {plural} and named it after a {job}.",
            "By dark they knew each other's favorite {noun}, {food} and {animal}.",
        ),
    ),
    (  # a quarrel
        (
            "Both {name} and {friend} wanted the {adj} {thing} that the {boss} had left at the {place}.",
            '"The {thing} is mine!" {name} {said} {adv}, and {did} it behind a {noun}.',
            "{when_cap} {name} and {friend} could not agree whether {hobby} or {hobby} was more fun.",
        ),
        (
            "They pulled {adv} until the {thing} {sounded} and the {plural} flew about.",
            "{name} took {number} {plural}, {friend} took the {noun}, and nobody said a word.",
            "{He} {moved} to the {place1} alone, but {hobby} alone was as dull as {plural}.",
        ),
        (
            'A {trait} {job} said {adv}, "Even a {animal} shares its {food}."',
            "Then {name} saw that {friend} had a {adj} {body} and looked {sad}.",
            "{name} {did} {his} {noun}, went back {adv} and offered some {food}.",
        ),
        (
            "They used the {thing} in turns: {name} for {hobby}, {friend} for {hobby}.",
            "They cut the {noun} in half, and each got {number} {plural}.",
            "With the {thing} they {did} a {adj} {noun} that neither could have moved alone.",
        ),
    ),
    (  # a storm
        (
            "Then the wind {sounded}, and {adj} clouds came over the {place}.",
            "{when_cap} the river rose, and {adj} {plural} floated past the {place}.",
            "Snow as thick as {food} covered the {place} and {his} {elder}'s {thing}.",
        ),
        (
            "{He} {did} the {thing} {adv} and hid under a {stuff} {noun}.",
            "The {tree} {sounded}, a {noun} blew away, and a {animal} {moved} into the {place1}.",
            "{He} lit a {noun}, but the light was as weak as a {adj} {animal}.",
        ),
        (
            "{friend} knew a {adj} place below the {tree} where {plural} were stored.",
            '"Hold my {body}," {friend} {said}, "and think of {food} and {hobby}."',
            "They {did} the {thing} with {stuff} and sang to a {sad} {animal}.",
        ),
        (
            "{when_cap} the sky was {colour}, and {adj} {plural} lay everywhere.",
            "When the storm was over, the {place} was {adj}, but the {thing} was safe.",
            "At last it grew quiet. Only a {noun} {sounded}, and a {animal} {moved} home.",
        ),
    ),
    (  # a contest
        (
            "The {boss} announced a {hobby} contest at the {place}; the prize was a {colour} {thing}.",
            "{name} wanted to win the {adj} {thing} in the {noun} race {when}.",
            'A {trait} {animal} laughed at {him}: "A {kind} will never win at {hobby}!"',
        ),
        (
            "{He} trained {adv} with a {noun}, but {his} {body} hurt.",
            "At the start {he} {moved} into a {noun}, and {number} {plural} fell on {his} {body}.",
            "The others {moved} past {adv}, even a {adj} {animal} with a {noun}.",
        ),
        (
            '{friend} ran beside {him} and {said}, "{wow}! Think of {plural}, not of the {thing}!"',
            "Near the {place1} a {animal} had hurt its {body}. {name} stopped {adv} to help.",
            "{friend} lent {him} a {adj} {noun} made of {stuff} and {plural}.",
        ),
        (
            "{He} came in number {number}, but everyone clapped {adv} and gave {him} {food}.",
            "{name} won by a {body}, and shared the {thing} with a {trait} {animal}.",
            "The {boss} was {glad} and hung a {stuff} {noun} around {his} neck.",
        ),
    ),
    (  # a mystery
        (
            "Each {part} something {sounded} {adv} in the {place}, near the {thing}.",
            '{when_cap} {he} found a {adj} note in the {thing}: "Look for {number} {plural}."',
            "Somebody had painted the {thing} {colour}, and nobody near the {place} knew who.",
        ),
        (
            "{He} {moved} there {adv} with a {noun}, and saw {adj} {plural}.",
            "Was it a {job}? Was it a {animal} with a {noun}? {He} could not tell.",
            "{He} asked a {trait} {animal} and a {job}, who knew only about {food}.",
        ),
        (
            "{friend} {did} the {noun} and found {colour} {plural} below it.",
            "They waited {adv} behind a {tree} with {food} and a {noun}.",
            '"Look," {friend} {said}, "these {plural} smell of {food}!"',
        ),
        (
            "It was a {adj} {animal} that was {hobby} in secret with a {stuff} {noun}!",
            "The {thing} opened, it {sounded}, and inside lay {plural} and a {adj} {noun}.",
            "{His} own {elder} had done it, to surprise {him} with {food} and a {noun}.",
        ),
    ),
    (  # a mistake is admitted
        (
            "While {hobby}, {name} broke the {adj} {thing} of the {boss}.",
            "{name} ate up the {food} of the {place} feast, and hid the {thing}.",
            "{when_cap} {he} borrowed a {colour} {thing} without asking, and it fell into the {plural}.",
        ),
        (
            "{He} hid the pieces in a {noun} under {adj} {plural}.",
            '"A {animal} did it," {he} {said} {adv}, but {his} {body} turned {colour}.',
            "{He} {did} it with {stuff} and {food}, which made it look like a {adj} {noun}.",
        ),
        (
            '"Tell the {boss} {adv}," {friend} {said}, "and bring {plural} with you."',
            "{friend} went with {him} to the {place1}, carrying {food} and a {noun}.",
            "{name} thought of a {trait} {animal} that told lies and lost its {noun}.",
        ),
        (
            '"I broke a {noun} myself when I was {number}," {said} the {boss} {adv}.',
            "The {boss} was {sad} at first, then {glad}, and they {did} the {thing} together.",
            "{He} worked in the {place} for {number} days, {hobby}, and paid for it with {plural}.",
        ),
    ),
    (  # something is grown
        (
            "The {boss} gave {name} a {adj} seed and said it would be a {colour} {tree} {when}.",
            "{name} planted {plural} in a {adj} {thing} behind the {place}.",
            "The garden of {his} {elder} near the {place} was dry, and the {plural} were {adj}.",
        ),
        (
            "{He} watered it {adv} with a {noun}, but only {adj} {plural} came up.",
            "A {trait} {animal} {moved} in and ate the {plural} and the {food}.",
            "{number_cap} days went by, and the earth stayed as {adj} as a {noun}.",
        ),
        (
            "{friend} {did} the earth {adv} and mixed it with {plural} and {stuff}.",
            '"Sing to it {when}," {friend} {said}, "and give it {food} as well."',
            "They built a {stuff} fence with a {noun} and {number} {plural}.",
        ),
        (
            "One {sky} {part} there was a {colour} flower, as {adj} as a {noun}.",
            "Soon there were {plural} for the {boss}, the {animal} and the whole {place1}.",
            "It grew taller than the {place1}, and a {animal} {moved} into it with {number} {plural}.",
        ),
    ),
)

_SLOT = re.compile(r"\{(\w+)\}")


def _picker(rng: random.Random) -> Callable[[str], str]:
    """Draws from a word list without repeating a word in one story.

    Only `rng.random()` is used: it alone is promised to give the same numbers in every Python version.
    """
    had: set[str] = set()

    def pick(key: str) -> str:
        words = WORDS[key]
        for _ in range(20):
            word = words[int(rng.random() * len(words))]
            if word not in had:
                break
        had.add(word)
        return word

    return pick


def _cast(rng: random.Random, pick: Callable[[str], str]) -> dict[str, str]:
    """Who and what one story is about: the slots that keep their value."""

    def person() -> tuple[str, str, tuple[str, str, str]]:
        girl = rng.random() < 0.5
        names = GIRLS if girl else BOYS
        name = names[int(rng.random() * len(names))]
        kind = ("girl" if girl else "boy") if rng.random() < 0.4 else pick("animal")
        return name, kind, ("she", "her", "her") if girl else ("he", "him", "his")

    name, kind, (he, him, his) = person()
    friend, fkind, (fhe, fhim, fhis) = person()
    while friend == name:
        friend, fkind, (fhe, fhim, fhis) = person()
    return {
        "name": name, "kind": kind, "he": he, "him": him, "his": his,
        "He": he.capitalize(), "His": his.capitalize(),
        "friend": friend, "fkind": fkind, "fhe": fhe, "fhim": fhim, "fhis": fhis,
        "thing": pick("noun"), "place": pick("place"), "place0": pick("place"), "place1": pick("place"),
        "elder": pick("elder"), "elder2": pick("elder"), "boss": pick("job"),
    }  # fmt: skip


def tell(rng: random.Random) -> str:
    """One story: three or four paragraphs with a blank line between, 80 to 200 words, no final line break."""
    while True:
        story = _draft(rng)
        if 80 <= len(story.split()) <= 200:
            return story


def _draft(rng: random.Random) -> str:
    pick = _picker(rng)
    cast = _cast(rng, pick)

    def fill(match: re.Match[str]) -> str:
        slot = match[1]
        if slot in cast:
            return cast[slot]
        key, _, capital = slot.partition("_")
        word = pick(key)
        return word[0].upper() + word[1:] if capital else word

    def say(templates: tuple[str, ...], count: int = 1) -> list[str]:
        rest, chosen = list(templates), []
        for _ in range(count):
            chosen.append(_SLOT.sub(fill, rest.pop(int(rng.random() * len(rest)))))
        return chosen

    def maybe(templates: tuple[str, ...], chance: float) -> list[str]:
        return say(templates) if rng.random() < chance else []

    trouble, attempt, turn, result = PLOTS[int(rng.random() * len(PLOTS))]
    paragraphs = [
        say(OPENINGS) + say(SETTINGS, 1 + int(rng.random() * 2)),
        say(trouble) + maybe(FEELINGS, 0.8) + say(attempt, 1 + (rng.random() < 0.3)),
        say(MEETINGS) + maybe(ASKING, 0.8) + say(turn),
        say(result) + maybe(THANKS, 0.6) + maybe(ENDINGS, 0.6) + maybe(LESSONS, 0.6),
    ]
    if rng.random() < 0.3:  # some stories run the middle together
        paragraphs[1:3] = [paragraphs[1] + paragraphs[2]]
    return _tidy("\n\n".join(" ".join(sentences) for sentences in paragraphs))


def _tidy(text: str) -> str:
    """Right articles ("an owl") and a capital at the start of each sentence."""
    text = re.sub(r"\b([Aa]) (?=[aeiouAEIOU])", r"\1n ", text)
    return re.sub(r"((?:^|[.!?] |\n)\"?)([a-z])", lambda match: match[1] + match[2].upper(), text)
