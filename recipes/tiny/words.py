"""The small world the tiny models live in: countries, words, people, things. Data only."""

from __future__ import annotations


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split())


CAPITALS = {
    "Argentina": "Buenos Aires", "Australia": "Canberra", "Austria": "Vienna", "Belgium": "Brussels",
    "Brazil": "Brasilia", "Bulgaria": "Sofia", "Canada": "Ottawa", "Chile": "Santiago", "China": "Beijing",
    "Colombia": "Bogota", "Croatia": "Zagreb", "Cuba": "Havana", "Cyprus": "Nicosia",
    "Denmark": "Copenhagen", "Egypt": "Cairo", "Estonia": "Tallinn", "Ethiopia": "Addis Ababa",
    "Finland": "Helsinki", "France": "Paris", "Germany": "Berlin", "Ghana": "Accra", "Greece": "Athens",
    "Hungary": "Budapest", "Iceland": "Reykjavik", "India": "New Delhi", "Indonesia": "Jakarta",
    "Iran": "Tehran", "Iraq": "Baghdad", "Ireland": "Dublin", "Israel": "Jerusalem", "Italy": "Rome",
    "Jamaica": "Kingston", "Japan": "Tokyo", "Kenya": "Nairobi", "Latvia": "Riga", "Lithuania": "Vilnius",
    "Luxembourg": "Luxembourg", "Malta": "Valletta", "Mexico": "Mexico City", "Morocco": "Rabat",
    "Nepal": "Kathmandu", "Norway": "Oslo", "Peru": "Lima", "Poland": "Warsaw", "Portugal": "Lisbon",
    "Romania": "Bucharest", "Serbia": "Belgrade", "Slovakia": "Bratislava", "Slovenia": "Ljubljana",
    "Spain": "Madrid", "Sweden": "Stockholm", "Switzerland": "Bern", "Thailand": "Bangkok",
    "Tunisia": "Tunis", "Turkey": "Ankara", "Ukraine": "Kyiv", "Uruguay": "Montevideo", "Vietnam": "Hanoi",
}

SPELLED = _listed("""
about above acorn actor after again album alien alone amber angel animal answer ant apple april apron arch
arm arrow autumn baby bacon badge bag baker ball bamboo banana bank barn basin basket bat beach bean bear
beaver bed bee beetle bell bench berry bike bird biscuit blanket boat bone book boot bottle bowl box branch
bread brick bridge broom brush bucket bus butter button cabin cactus cake camel camera candle canoe car card
carpet carrot castle cat cave chair chalk cheese cherry chess chicken circle city cliff clock cloud clover
coat cocoa coconut coffee coin comet cookie copper corn cotton cow crab cream crow crown cup curtain daisy
dance deer desert desk dinner dog dolphin donkey door dragon dream drum duck eagle earth egg elbow eleven
engine evening falcon family farm feather field finger fire fish flag flower fog forest fork fox frog fruit
garden garlic gate ghost giraffe glass globe glove goat gold goose grape grass green guitar hammer hand
harbour hat hazel heart hedge hen hill honey hook horse hotel house ice ink insect iron island ivy jacket
jam jar jelly jewel juice jungle kettle key king kitchen kite kitten knee knife ladder lake lamp lantern
leaf lemon letter library lily lion lizard lobster lock machine magnet mango maple marble market meadow
melon milk mirror moon morning mountain mouse mushroom music nail needle nest night noodle nose notebook
number ocean octopus office olive onion orange orchard otter oven owl paint panda paper parrot party pasta
peach peanut pear pencil penguin pepper piano pillow pilot pizza planet plate pocket pond potato pumpkin
puppy puzzle queen rabbit radio rain raven ribbon rice ring river road robin robot rocket roof room root
rose ruler saddle salad salmon salt sand sauce school sea seed sheep shell ship shirt shoe shop silver
sister sky sleep snail snow soap sock sofa soup spider spoon spring squirrel stable star station steam stone
storm strawberry street sugar summer sun swan swarm sweater table tea tent tiger toast tomato tooth tower
train tree trumpet tulip tunnel turtle umbrella valley vase velvet village violin wagon wall walnut water
wave whale wheat wheel willow wind window winter wolf wood wool yellow zebra
""")

NAMES = _listed("""
Anna Ben Clara David Emma Felix Greta Hugo Ida Jonas Karin Leo Maria Nils Olga Paul Rosa Simon Tara Victor
Wanda Yusuf Zoe Alice Boris Carla Dora Erik Fiona George Hanna Ivan Julia Kevin Laura Martin Nina Oscar
Petra Ralf Sara Thomas
""")

THINGS = _listed("""
lamp chair table kettle bike guitar mirror clock ladder carpet basket bottle camera candle hammer jacket
pillow piano radio sofa tent umbrella violin wagon drum ring boat book coat mug desk bench
""")

CITIES = _listed("""
Paris Rome Oslo Madrid Vienna Berlin Dublin Lisbon Athens Cairo Tokyo Lima Prague London Boston
""")
COLOURS = _listed("""
red blue green yellow black white brown pink grey orange
""")
TOPICS = _listed("""
love stars history physics music cats football taxes weather cooking chess trains money politics dreams rain
robots
""")
FILES = ("notes.txt", "team.txt", "list.txt", "rooms.md", "notes.md", "report.txt", "stock.txt")
FILLERS = (
    "The meeting went well.", "Nothing else was decided.", "It rained in the afternoon.",
    "Lunch was late again.", "We will meet again on Monday.", "The door was open.",
    "Everybody was on time.", "The coffee was cold.",    "Please keep this list.", "The rest can wait.",
)
VARIABLES = ("x", "y", "n", "count", "total", "price", "score", "size")
LISTS = ("items", "names", "values", "data", "words", "rows")
