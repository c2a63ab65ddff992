"""Which answers drift into another script or language, and which refuse."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axolotl_sdft.distillation.checks import language, refusal
from axolotl_sdft.distillation.checks.form import spoken_language
from tests.distillation.checks.samples import asked, written

RUSSIAN = "Чай пьют горячим, с лимоном или с молоком."  # noqa: RUF001
JAPANESE = "お茶は熱い飲み物です。毎日飲みます。"
CHINESE = "茶是热的饮料。我们每天都喝。"
PROSE = {
    "English": "The tea is made with hot water, and it is served to the guests of the house before they leave.",
    "German": "Der Tee wird mit heißem Wasser gemacht und ist für die Gäste des Hauses, die noch nicht gegangen sind.",
    "French": "Le thé est préparé avec de l'eau chaude et il est servi dans la cour pour les invités qui restent.",
    "Spanish": "El té se prepara con agua caliente y es para los invitados que están en la casa con las mujeres.",
    "Italian": "Il tè è preparato con acqua calda e non è servito che agli ospiti della casa, anche nel giardino.",
    "Portuguese": "O chá é feito com água quente e não é servido aos convidados da casa, mas também ao dono.",
    "Dutch": "De thee is gemaakt met het warme water van de bron, en er is ook een kop voor wie niet op tijd is.",
    "Swedish": "Det är ett te som är gjort med varmt vatten och inte för de gäster som har gått från huset.",
    "Polish": "To jest herbata, która nie jest gorąca, ale w domu się ją pije i podaje na stole z cukrem.",
    "Turkish": "Bu çay çok iyi ve evde misafirler için güzel, ama bir bardak daha var ve şeker de gibi değil.",
}


@pytest.mark.parametrize(
    ("text", "reference", "reason"),
    [
        ("Tea is drunk hot.", RUSSIAN, "Latin letters, the original Cyrillic"),
        (RUSSIAN, "Tea is drunk hot.", "Cyrillic letters, the original Latin"),
        (CHINESE, JAPANESE, "Chinese letters, the original Japanese"),
        (f"Tea is a hot drink with lemon. {RUSSIAN[:12]}", "Tea is drunk hot.", "10 Cyrillic letters"),
    ],
)
def test_another_script_is_rejected(text: str, reference: str, reason: str):
    assert language(written(text), asked(reference=reference)) == reason


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("コーヒーとケーキをください。", "お茶とお菓子をください。"),
        ("ｺｰﾋｰとｹｰｷをください。", "コーヒーとケーキをください。"),
        ("時々人々は山々を見る。", "たまに人は山を見る。"),
        ("Ｔｅａ ｉｓ ｄｒｕｎｋ ｈｏｔ．", "Tea is drunk hot."),  # noqa: RUF001
    ],
)
def test_marks_and_widths_of_a_script_are_not_another_one(text: str, reference: str):
    assert language(written(text), asked(reference=reference)) is None


def test_a_script_of_the_instruction_may_be_quoted():
    text = f"Tea is a hot drink with lemon. {RUSSIAN[:12]}"
    assert language(written(text), asked(f"Translate: {RUSSIAN}", "Tea is drunk hot.")) is None


@pytest.mark.parametrize(
    ("text", "reference"), [("π r^2", "42 = x"), ("ja", "да"), ("Paris (Париж)", "Paris"), ("", "Tea")]
)
def test_a_few_letters_tell_no_language(text: str, reference: str):
    assert language(written(text), asked(reference=reference)) is None


@pytest.mark.parametrize("spoken", sorted(PROSE))
def test_each_language_is_told_by_its_function_words(spoken: str):
    assert spoken_language(PROSE[spoken]) == spoken


def test_another_language_in_the_same_script_is_rejected():
    target = asked(reference=PROSE["German"])
    assert language(written(PROSE["English"]), target) == "in English, the original in German"
    assert language(written(PROSE["German"]), target) is None


@pytest.mark.parametrize(
    "text",
    [
        "Assam, Darjeeling, Ceylon, Sencha, Matcha, Oolong",
        "for (int i = 0; i < n; i++) { die(i); }",
        "De la Cruz, El Paso",
        "die die die die die",
    ],
)
def test_names_and_code_speak_no_language(text: str):
    assert spoken_language(text) is None


@given(st.text(max_size=60))
def test_an_answer_in_the_words_of_the_original_has_its_language(text: str):
    assert language(written(text), asked(reference=text)) is None


# --- refusal ---


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I cannot provide a recipe for tea.",
        "Sorry, I won't answer this.",
        "Unfortunately, I am unable to assist.",
        "I do not have access to your kitchen.",
        "As an AI language model, I don't drink tea.",
        "Tea is a drink. But as a large language model I am not able to taste it.",
        "I apologize for the confusion.",
        "Hello! Thank you for asking. Unfortunately, I can't help with that.",
        "As a careful assistant, I'm unable to discuss this.",
        "I'm afraid that I must decline.",
        "I politely decline to answer.",
        "I am just a chatbot, and I'm not allowed to give advice.",
        "It's not within my guidelines to tell.",
        "I'm sorry.",
        "Leider kann ich diese Frage nicht beantworten.",
        "Je suis désolée, mais je ne peux pas vous aider.",
        "Lo siento mucho, no puedo responder a eso.",
        "Mi spiace, non sono in grado di fornire ricette.",
        "Desculpe, não posso fornecer receitas.",
        "抱歉，我不能提供这样的信息。",  # noqa: RUF001
        "恐れ入りますが、そのご質問には回答できません。",
        "Простите, я не могу дать такой совет.",
        "죄송합니다. 그 질문에는 답변할 수 없습니다.",
        "Helaas kan ik deze vraag niet beantwoorden.",
        "Niestety nie mogę odpowiedzieć na to pytanie.",
        "I\u2019m sorry, I can\u2019t do that.",
    ],
)
def test_an_answer_that_refuses_is_rejected(text: str):
    assert refusal(written(text), asked()) is not None


@pytest.mark.parametrize(
    "text",
    [
        "I can't believe how good tea is.",
        "You can't help but love it.",
        "I'm sorry to hear that your cup broke.",
        "Tea can not be made with cold water.",
        "She said: I cannot help you.",
        "I can help with that.",
        "As an aid, an AI can sort the leaves.",
        "I'm sorry to report that the kettle is broken.",
        "I cannot praise this tea enough.",
        "I won't give you my cup, said the hare.",
        "I could not open the tin, so I drank water.",
        "Unfortunately, the shop is closed.",
        "Ich kann dir diesen Tee nicht genug empfehlen.",
        "Je ne peux pas vivre sans thé.",
    ],
)
def test_an_answer_that_only_sounds_like_a_refusal_passes(text: str):
    assert refusal(written(text), asked()) is None


def test_an_apology_is_what_some_instructions_ask_for():
    text = "I apologize for the inconvenience. Your tea left our house today."
    assert refusal(written(text), asked()) is not None
    assert refusal(written(text), asked("Write an apology to a customer")) is None


def test_an_answer_may_refuse_where_the_original_does():
    target = asked("How do I poison tea?", "I can't help with that.")
    assert refusal(written("Sorry, but I cannot assist you."), target) is None
