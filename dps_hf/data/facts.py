"""Countries and their capitals: something to know by heart."""

import numpy as np

from dps_hf.data.record import Record, pick, record


CAPITALS = {
    "Afghanistan": "Kabul", "Albania": "Tirana", "Algeria": "Algiers", "Andorra": "Andorra la Vella",
    "Angola": "Luanda", "Antigua and Barbuda": "Saint John's", "Argentina": "Buenos Aires", "Armenia": "Yerevan",
    "Australia": "Canberra", "Austria": "Vienna", "Azerbaijan": "Baku", "the Bahamas": "Nassau",
    "Bahrain": "Manama", "Bangladesh": "Dhaka", "Barbados": "Bridgetown", "Belarus": "Minsk",
    "Belgium": "Brussels", "Belize": "Belmopan", "Benin": "Porto-Novo", "Bhutan": "Thimphu",
    "Bolivia": "Sucre", "Bosnia and Herzegovina": "Sarajevo", "Botswana": "Gaborone", "Brazil": "Brasília",
    "Brunei": "Bandar Seri Begawan", "Bulgaria": "Sofia", "Burkina Faso": "Ouagadougou", "Burundi": "Gitega",
    "Cambodia": "Phnom Penh", "Cameroon": "Yaoundé", "Canada": "Ottawa", "Cape Verde": "Praia",
    "the Central African Republic": "Bangui", "Chad": "N'Djamena", "Chile": "Santiago", "China": "Beijing",
    "Colombia": "Bogotá", "the Comoros": "Moroni", "Costa Rica": "San José", "Croatia": "Zagreb",
    "Cuba": "Havana", "Cyprus": "Nicosia", "the Czech Republic": "Prague",
    "the Democratic Republic of the Congo": "Kinshasa", "Denmark": "Copenhagen", "Djibouti": "Djibouti City",
    "Dominica": "Roseau", "the Dominican Republic": "Santo Domingo", "East Timor": "Dili", "Ecuador": "Quito",
    "Egypt": "Cairo", "El Salvador": "San Salvador", "Equatorial Guinea": "Malabo", "Eritrea": "Asmara",
    "Estonia": "Tallinn", "Eswatini": "Mbabane", "Ethiopia": "Addis Ababa", "Fiji": "Suva",
    "Finland": "Helsinki", "France": "Paris", "Gabon": "Libreville", "the Gambia": "Banjul",
    "Georgia": "Tbilisi", "Germany": "Berlin", "Ghana": "Accra", "Greece": "Athens",
    "Grenada": "St. George's", "Guatemala": "Guatemala City", "Guinea": "Conakry", "Guinea-Bissau": "Bissau",
    "Guyana": "Georgetown", "Haiti": "Port-au-Prince", "Honduras": "Tegucigalpa", "Hungary": "Budapest",
    "Iceland": "Reykjavík", "India": "New Delhi", "Indonesia": "Jakarta", "Iran": "Tehran",
    "Iraq": "Baghdad", "Ireland": "Dublin", "Israel": "Jerusalem", "Italy": "Rome",
    "Ivory Coast": "Yamoussoukro", "Jamaica": "Kingston", "Japan": "Tokyo", "Jordan": "Amman",
    "Kazakhstan": "Astana", "Kenya": "Nairobi", "Kiribati": "South Tarawa", "Kuwait": "Kuwait City",
    "Kyrgyzstan": "Bishkek", "Laos": "Vientiane", "Latvia": "Riga", "Lebanon": "Beirut",
    "Lesotho": "Maseru", "Liberia": "Monrovia", "Libya": "Tripoli", "Liechtenstein": "Vaduz",
    "Lithuania": "Vilnius", "Luxembourg": "Luxembourg City", "Madagascar": "Antananarivo", "Malawi": "Lilongwe",
    "Malaysia": "Kuala Lumpur", "the Maldives": "Malé", "Mali": "Bamako", "Malta": "Valletta",
    "the Marshall Islands": "Majuro", "Mauritania": "Nouakchott", "Mauritius": "Port Louis",
    "Mexico": "Mexico City", "Micronesia": "Palikir", "Moldova": "Chișinău", "Monaco": "Monaco",
    "Mongolia": "Ulaanbaatar", "Montenegro": "Podgorica", "Morocco": "Rabat", "Mozambique": "Maputo",
    "Myanmar": "Naypyidaw", "Namibia": "Windhoek", "Nauru": "Yaren", "Nepal": "Kathmandu",
    "the Netherlands": "Amsterdam", "New Zealand": "Wellington", "Nicaragua": "Managua", "Niger": "Niamey",
    "Nigeria": "Abuja", "North Korea": "Pyongyang", "North Macedonia": "Skopje", "Norway": "Oslo",
    "Oman": "Muscat", "Pakistan": "Islamabad", "Palau": "Ngerulmud", "Palestine": "Ramallah",
    "Panama": "Panama City", "Papua New Guinea": "Port Moresby", "Paraguay": "Asunción", "Peru": "Lima",
    "the Philippines": "Manila", "Poland": "Warsaw", "Portugal": "Lisbon", "Qatar": "Doha",
    "the Republic of the Congo": "Brazzaville", "Romania": "Bucharest", "Russia": "Moscow", "Rwanda": "Kigali",
    "Saint Kitts and Nevis": "Basseterre", "Saint Lucia": "Castries",
    "Saint Vincent and the Grenadines": "Kingstown", "Samoa": "Apia", "San Marino": "San Marino",
    "São Tomé and Príncipe": "São Tomé", "Saudi Arabia": "Riyadh", "Senegal": "Dakar", "Serbia": "Belgrade",
    "the Seychelles": "Victoria", "Sierra Leone": "Freetown", "Singapore": "Singapore",
    "Slovakia": "Bratislava", "Slovenia": "Ljubljana", "the Solomon Islands": "Honiara",
    "Somalia": "Mogadishu", "South Africa": "Pretoria", "South Korea": "Seoul", "South Sudan": "Juba",
    "Spain": "Madrid", "Sri Lanka": "Sri Jayawardenepura Kotte", "Sudan": "Khartoum", "Suriname": "Paramaribo",
    "Sweden": "Stockholm", "Switzerland": "Bern", "Syria": "Damascus", "Tajikistan": "Dushanbe",
    "Tanzania": "Dodoma", "Thailand": "Bangkok", "Togo": "Lomé", "Tonga": "Nukuʻalofa",
    "Trinidad and Tobago": "Port of Spain", "Tunisia": "Tunis", "Turkey": "Ankara", "Turkmenistan": "Ashgabat",
    "Tuvalu": "Funafuti", "Uganda": "Kampala", "Ukraine": "Kyiv", "the United Arab Emirates": "Abu Dhabi",
    "the United Kingdom": "London", "the United States": "Washington, D.C.", "Uruguay": "Montevideo",
    "Uzbekistan": "Tashkent", "Vanuatu": "Port Vila", "Vatican City": "Vatican City", "Venezuela": "Caracas",
    "Vietnam": "Hanoi", "Yemen": "Sanaa", "Zambia": "Lusaka", "Zimbabwe": "Harare",
}  # fmt: skip
"""The members and observer states of the United Nations; where a state has several capitals, one of them."""

FORWARD = ("What is the capital of {}?", "Which city is the capital of {}?", "Name the capital of {}.")
BACKWARD = ("{} is the capital of which country?", "Which country has the capital {}?")


def facts(rng: np.random.Generator, split: str) -> Record:
    """ "What is the capital of France?" "Paris.", and in 1 of 3 records the other way round.

    Facts are learnt by heart, so nothing is held out: `split` changes nothing.
    """
    country, capital = pick(rng, tuple(CAPITALS.items()))
    if rng.random() < 2 / 3:
        return record("facts", [pick(rng, FORWARD).format(country)], [_sentence(capital)])
    return record("facts", [pick(rng, BACKWARD).format(capital)], [_sentence(country)])


def _sentence(name: str) -> str:
    return name[0].upper() + name[1:].rstrip(".") + "."
