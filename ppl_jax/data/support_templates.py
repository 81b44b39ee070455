"""Words of the generated support dialogues, in three disjoint parts.

Every list is (train, validation, test), its entries separated by "|". No
template, phrase or value of one part is in another, so that test measures what
a student has learned and not what it remembers.
"""

PARTS = ("train", "validation", "test")

# Said by both sides, before and after an utterance, in every part: they tell
# next to nothing about the class. Answers have quieter openers and no tails.
GREETINGS = ("Hello.", "Hi.", "Good morning.", "Good day.", "Hi there.")
ANSWER_OPENERS = ("Okay.", "Well.", "Hm.", "Oh.", "One moment.", "Ah.")
OPENERS = (
  *("Okay.", "Right.", "Well.", "Hm.", "All right.", "Oh.", "I see.", "Sorry."),
  *("Thank you.", "Yes.", "One moment.", "Good.", "Let me see.", "Of course."),
)
TAILS = (
  *("Sorry about that.", "Thank you.", "I hope that helps.", "Please."),
  *("That is all I know.", "If I may say so.", "There is no hurry.", "Yes."),
)

# Utterances. A name before the dot is the class; names without a dot are of the
# class that the utterances before them decide.
TEMPLATES = {
  "question.fact": (
    """What is {fact}? | Could you tell me {fact}, please? | May I have {fact}?
    | Can you give me {fact}? | Do you know {fact}? | And {fact}, what is that?
    | Would you tell me {fact}? | I need {fact}, what is it?
    | What do you have as {fact}? | Can you read {fact} to me?
    | I still have to know {fact}. | I do not see {fact} here, what is it?
    | Please tell me {fact}. | {fact}, please? | I would like to know {fact}.
    | All I am missing is {fact}. | I wonder what {fact} is.""",
    """Could I have {fact}, please? | Can you tell me what {fact} is?
    | What was {fact} again? | {fact} is still missing here.""",
    """Could you give me {fact}? | May I ask what {fact} is?
    | What exactly is {fact}? | Do you happen to know {fact}?
    | Can I ask you for {fact}? | I am still missing {fact}.
    | It would help to know {fact}. | Please let me know {fact}.""",
  ),
  "question.wish": (
    """Which {wish} would you like? | What {wish} would suit you best?
    | Which {wish} do you want? | What {wish} should we note for you?
    | Which {wish} shall I take? | And which {wish} do you prefer?
    | What {wish} shall we use? | Which {wish} should I put down for you?
    | What would you like as {wish}? | You are free to choose the {wish}.
    | I only need to know which {wish} you want.
    | Please choose the {wish} now. | Is there any {wish} that you would prefer?
    | Tell me which {wish} I should take.""",
    """Which {wish} should it be? | What {wish} do you want us to use?
    | Which {wish} would be best for you? | You can choose the {wish} now.""",
    """What {wish} would you prefer? | Which {wish} should I choose for you?
    | And what {wish} do you want? | What {wish} shall I note?
    | Which {wish} would suit you? | Please tell me which {wish} you prefer.
    | You may choose the {wish} now.""",
  ),
  "question.else": (
    """Is there anything else I can do for you? | Anything else today?
    | Do you need anything else? | Can I help you with anything else?
    | Would there be anything else?""",
    "Is there something else you need? | Do you have anything else for me?",
    """Was there anything else today? | Is there anything else you need from us?
    | Can I do anything else for you?""",
  ),
  "check": (
    """Is {fact} {value}? | I see {value} as {fact}, is that right?
    | So {fact} is {value}? | Is it true that {fact} is {value}?
    | Did you say that {fact} is {value}? | Is {value} still {fact}?
    | {fact} is {value}, is it not? | Do I see it right that {fact} is {value}?
    | And {fact}, is that {value}? | Are you sure that {fact} is {value}?
    | Can you confirm that {fact} is {value}?
    | I just want to be sure that {fact} is {value}.
    | Let me read it back, {fact} is {value}. | I noted {value} as {fact}, yes?
    | Please tell me if {fact} is {value}.""",
    """Is {fact} really {value}? | {fact} is {value}, is that true?
    | Am I right that {fact} is {value}?
    | Let me be sure, {fact} is {value}.""",
    """Is it right that {fact} is {value}? | And {fact} is still {value}?
    | So is {fact} {value}? | I have {value} as {fact}, is that still true?
    | Do you mean that {fact} is {value}? | I want to read {fact} back, {value}.
    | Please confirm that {fact} is {value}.""",
  ),
  "offer": (
    """Shall I {action}? | I can {action} if you like.
    | Should I {action} today?
    | Would you like me to {action}? | Do you want me to {action}?
    | We could {action} instead. | I could {action} right now.
    | If you want, I will {action}. | May I {action}?
    | I can offer to {action}. | Would it help you if we {action}?
    | One thing I could do is {action}. | How would it be if we {action}?
    | We would be glad to {action}. | Just say so and I {action}.
    | My colleague can {action}. | Maybe we should {action}?""",
    """We can {action} if you want. | Shall we {action} then?
    | Would you want me to {action}? | What we can do is {action}.""",
    """Would you like us to {action}? | I could {action} if you want.
    | If you like, we can {action}. | Do you want us to {action} today?
    | Should we {action} right now? | One thing we can offer is to {action}.
    | Maybe I could {action}? | I would be glad to {action} if that helps.""",
  ),
  "problem": (
    """{problem}. | I have a problem, {problem}. | It seems that {problem}.
    | I am sorry to say that {problem}. | The trouble is that {problem}.
    | {problem} and I do not know why. | I am calling because {problem}.
    | There is something wrong, {problem}. | {problem} again. | Now {problem}.
    | I just saw that {problem}. | Can it be that {problem}?
    | How is it possible that {problem}? | You should know that {problem}.""",
    """I saw that {problem}. | My problem is that {problem}.
    | {problem} once again. | How is it that {problem}?""",
    """I have some trouble, {problem}. | The problem is that {problem}.
    | {problem}, something is wrong. | I am writing because {problem}.
    | It looks like {problem}. | I see that {problem}.
    | How can it be that {problem}?""",
  ),
  "request": (
    """Please {action}. | Could you {action}? | I would like you to {action}.
    | Can you {action} then? | I want you to {action}.
    | Would you {action}, please? | I need you to {action}.
    | Then please {action} today. | Could you {action} today, please?
    | You should {action}, please. | I was hoping you could {action}.
    | All I want is that you {action}. | It would be best to {action}.
    | Somebody has to {action}. | Is it possible to {action}?
    | It is time to {action}.""",
    """Could you please {action}? | I ask you to {action}.
    | Can somebody {action}, please? | What I want is that you {action}.""",
    """Can you {action}, please? | I would like somebody to {action}.
    | Please could you {action}? | Would you {action} then?
    | I really want you to {action}. | I was hoping somebody would {action}.
    | Would it be possible to {action}? | You have to {action} now.""",
  ),
  "request.value": (
    """I would like {value}, please. | {value}, please. | Please take {value}.
    | I want {value}. | I prefer {value}. | {value} would suit me best.
    | Put me down for {value}. | Let us say {value}.""",
    "Could I have {value}? | Please use {value}. | Let us take {value}.",
    """I would prefer {value}. | Please note {value} for me.
    | {value} would be best, please. | Let us do {value}.""",
  ),
  "inform.value": (
    """It is {value}. | {fact} is {value}. | I have {value} here.
    | It says {value}. | I see {value} here. | We have {value} as {fact}.
    | You will find that it is {value}. | It was {value} the last time.""",
    "{value} is {fact}. | Here it says {value}. | I find {value} here.",
    """{fact} should be {value}. | It says {value} here.
    | I can see {value}, that is {fact}. | The last time it was {value}.""",
  ),
  "inform.news": (
    """{news}. | I see here that {news}. | Our system says that {news}.
    | For your information, {news}. | You should know that {news}.
    | As far as I can see, {news}. | I can tell you that {news}.
    | I am sorry but {news}. | Please note that {news}. | It seems that {news}.
    | It may be that {news}.""",
    """The system tells me that {news}. | I read here that {news}.
    | I am sorry, {news}.""",
    """I can see that {news}. | You see, {news}. | Our list says that {news}.
    | As far as I know, {news}. | Please keep in mind that {news}.
    | I am afraid that {news}.""",
  ),
  "inform.detail": (
    """{detail}. | You should know that {detail}. | As I said, {detail}.
    | For your information, {detail}. | I can tell you that {detail}.
    | And {detail}, by the way. | Please note that {detail}.
    | It may help you that {detail}.""",
    """So you know, {detail}. | I told you that {detail}.
    | Maybe it helps that {detail}.""",
    """By the way, {detail}. | I can say that {detail}.
    | For the record, {detail}. | You see, {detail}.
    | Please keep in mind that {detail}.""",
  ),
  "inform.aside": (
    """That would cost you nothing. | It takes two days at most.
    | There is no charge for that. | That only takes a minute.
    | It would be done by tonight.""",
    "It costs you nothing at all. | That is done in an hour.",
    """There is no extra charge. | It only takes an hour or so.
    | That would take a day at most.""",
  ),
  "confirm": (
    """Yes, {value} is correct. | That is correct. | Exactly, {value}.
    | You have that right. | That is true. | Yes, it is {value}.
    | I have the same here. | That is what it says. | Nothing has changed.""",
    "Yes, {value} is right. | That is still true. | I see the same here.",
    """Yes, that is true. | Correct, it is {value}. | Exactly, that is right.
    | It says the same here. | Nothing is different.""",
  ),
  "deny": (
    """No, that is wrong. | No, it is {other}. | That is not correct.
    | No, {value} is wrong. | That is not true. | It is not {value}.
    | I have {other} here instead. | That must be a mistake.
    | You have the wrong one there.""",
    """No, that is not right. | That is wrong, it is {other}.
    | It says {other} instead.""",
    """No, {value} is not correct. | Not true, it is {other}.
    | That is not right, I am sorry. | Here it says {other} instead.
    | There must be a mistake.""",
  ),
  "accept.offer": (
    """Yes, please do that. | Please go ahead. | That would be great.
    | I would like that. | Yes, that would help me. | Please do.
    | You can do that. | I have nothing against it. | The sooner the better.""",
    "Yes, please. | That would be good. | Nothing against that.",
    """That would help me, please. | Please go ahead and do that.
    | I would be glad if you did. | I have no objection to that.
    | Do it, the sooner the better.""",
  ),
  "accept.request": (
    """I will do that for you. | Of course, I will {action}.
    | I will see to it. | We will {action} today. | I am happy to do that.
    | Consider it done. | You can count on us. | I am on it now.""",
    "I will do it today. | We will gladly {action}. | We are on it.",
    """We will do that for you. | Of course, we will see to it.
    | I am happy to {action}. | It will be done today, count on me.""",
  ),
  "decline.offer": (
    """I would rather not. | Please do not do that. | No, leave it.
    | I do not want that. | I do not need that. | No, let us wait.
    | That is not necessary. | It can stay as it is. | Maybe another time.""",
    "No, I would rather wait. | I do not want you to. | Let it stay as it is.",
    """I would rather you did not. | Please leave it. | No, I do not need it.
    | It is not necessary to do that. | Another time, maybe.""",
  ),
  "decline.request": (
    """I am afraid I cannot do that. | Sorry, we do not do that.
    | Unfortunately we cannot {action}. | I am not allowed to {action}.
    | That is not possible for us. | Our rules are against that.
    | It is too late to {action}.""",
    """Sorry, I cannot {action}. | We are not able to do that.
    | It is too late for that.""",
    """I am afraid we cannot {action}. | Sorry, that is not possible.
    | Unfortunately I am not allowed to do that.
    | Our rules do not let me {action}.""",
  ),
  "closing.customer": (
    """Thanks for your help, goodbye. | Goodbye then. | Thank you, bye.
    | Bye for now. | Thanks again and have a good evening.
    | That was all, thanks.""",
    "Thanks a lot, goodbye. | That is all for now, thank you.",
    """Thank you for the help, bye. | That was everything, thanks.
    | Thanks again, goodbye. | Goodbye and many thanks.""",
  ),
  "closing.agent": (
    """Have a nice day. | You are welcome, goodbye. | You are very welcome.
    | Thanks for calling, bye. | My pleasure, have a good evening.
    | Thank you and goodbye.""",
    "Have a good day, bye. | You are most welcome.",
    """Goodbye and have a nice evening. | You are welcome, have a good day.
    | Thank you for calling, goodbye. | My pleasure, bye.""",
  ),
  "yes": (
    """Yes. | Yes, sure. | Yes, of course. | Yeah, okay. | Yes, that is right.
    | Yes, definitely. | Absolutely. | Certainly, yes. | Okay, yes.
    | Yes, I think so. | Sure. | Yes, indeed. | Right, yes. | Yeah.""",
    "Yes, absolutely. | Sure, of course. | Yes, right. | Yeah, I think so.",
    """Yes, certainly. | Sure, yes. | Yeah, definitely. | Of course, yes.
    | Okay, sure. | Yeah, of course. | Yes, okay. | I think so, yes.""",
  ),
  "no": (
    """No. | No, not really. | Not at all. | No, I do not think so.
    | Nope. | Not really. | No, sorry. | Oh no. | No, not that. | Certainly not.
    | No, no.""",
    "No, not at all. | I do not think so. | Sorry, no.",
    """Not really, no. | No, definitely not. | No, certainly not.
    | I think not. | Nope, sorry. | No, I think not.""",
  ),
  "no_thanks": (
    "No, thank you. | No, thanks. | No, but thank you. | Thanks, but no.",
    "Thank you, but no. | No thanks, really.",
    "No, thank you very much. | Oh no, thanks. | Thanks, no.",
  ),
  "thanks": (
    """Great, thank you. | Perfect, thanks. | Thank you very much.
    | That is very kind, thanks. | Wonderful, thank you. | Oh, thanks a lot.
    | Good, thanks.""",
    "Great, thank you so much. | Perfect, thank you indeed.",
    """Great, thanks a lot. | Very kind, thank you. | Wonderful, many thanks.
    | Oh good, thank you.""",
  ),
  "value": (
    """{value}. | {value}, I think. | I think {value}. | Let me see, {value}.
    | That would be {value}. | One moment, {value}. | {value} then.
    | Let me look, {value}.""",
    "It would be {value}. | Wait a moment, {value}. | {value}, I guess.",
    """Let me think, {value}. | I would say {value}. | {value}, I would think.
    | One second, {value}. | Then {value}.""",
  ),
}

# Of these kinds a fact may be asked or a wish, so "value" alone does not tell.
VALUES = {
  "time": (
    """Monday at eight | Tuesday at ten | Thursday at nine | Friday at noon
    | Wednesday after four | Saturday before eleven | Monday afternoon
    | Thursday evening | Tuesday around two | Friday morning""",
    "Wednesday at one | Saturday at three | Tuesday before six | Friday at two",
    """Thursday at seven | Monday around eleven | Saturday afternoon
    | Wednesday morning | Friday before ten | Tuesday evening
    | Monday at four""",
  ),
  "date": (
    """the third of May | the tenth of June | the first of July
    | the ninth of March | the twelfth of April | the fifth of October
    | the second of June | the twentieth of May | the eighth of July""",
    "the fourth of August | the sixth of May | the eleventh of June",
    """the seventh of July | the fourth of June | the thirtieth of April
    | the sixth of October | the fifteenth of May | the fourth of March""",
  ),
  "place": (
    """12 Mill Lane | 7 Station Road | 31 Garden Street
    | the shop at the station | the office in the north | 5 Church Road
    | the house next door | 18 River Street | the shop in the old town""",
    "40 Forest Lane | the office at the bridge | 22 Hill Street",
    """9 Harbour Street | 26 School Lane | the shop at the market
    | the office in the south | 14 Meadow Road | the house at the back""",
  ),
  "choice": (
    """the first one | the second one | the blue one | the large one
    | the cheaper one | the one on the left | the old one | the black one
    | the other one""",
    "the third one | the green one | the smaller one",
    """the last one | the red one | the small one | the newer one
    | the one on the right | the white one""",
  ),
  "code": (
    """K 4471 | R 2093 | T 7718 | K 5560 | R 8124 | T 3907 | K 6135 | R 9042""",
    "B 1180 | B 6642 | B 3251",
    "M 2276 | X 8803 | M 9514 | X 4139 | M 7760 | X 1625",
  ),
  "name": (
    """Anna Berg | Paul Lind | Mara Stein | Jonas Holt | Ida Falk | Omar Reyes
    | Tessa Moor""",
    "Clara Voss | Henri Dahl | Nora Pike",
    "Lena Marsh | Tariq Nouri | Greta Sand | Emil Roth | Rosa Quint",
  ),
}

# What the dialogues are about. {my}, {me} and {I} turn with the speaker. Facts
# and wishes name the kind of value that answers them.
DOMAINS = {
  "parcel": {
    "problem": (
      """{my} parcel has not arrived | the box came open and wet
      | half of the order is missing | the wrong jacket was in the box
      | the driver left the parcel in the rain""",
      "the lamp in the box is broken | nobody brought the parcel",
      """{my} package never came | the mug in the box is broken
      | the order is not complete""",
    ),
    "action": (
      """send a new parcel | refund the delivery charge
      | change the delivery address | ask the driver about it
      | send {me} the missing part""",
      "send the lamp again | refund half of the price",
      """send {me} a new mug | refund the whole order
      | ask the depot about the package""",
    ),
    "fact": (
      """the order number:code | the day of the delivery:date
      | the delivery address:place | the broken item:choice
      | the time of the last attempt:time""",
      "the address on the label:place | the number on the receipt:code",
      """the address of the order:place | the day of the last attempt:date
      | the number of the package:code""",
    ),
    "wish": (
      """delivery day:date | pickup point:place | replacement:choice
      | delivery time:time""",
      "day for the courier:date | shop:place",
      "new delivery time:time | delivery address:place | new item:choice",
    ),
    "news": (
      """the parcel left our depot this morning | the driver always rings twice
      | a box of that size takes three days""",
      "the courier comes in the morning | the lamp is in stock",
      "the package is in the depot | the driver comes in the afternoon",
    ),
    "detail": (
      """I ordered it two weeks ago | I was at home all day
      | it is a present for a friend""",
      "I paid for it in spring | my neighbour was at home",
      "I ordered it last month | it is for my brother",
    ),
  },
  "router": {
    "problem": (
      """the router does not start | {my} internet is very slow
      | the red light is on all the time | the line is dead since last night
      | the new cable does not fit""",
      "the signal is too weak upstairs | the router restarts every hour",
      """{my} line is very slow | the router does not find the network
      | the green light is not on""",
    ),
    "action": (
      """send a technician | reset the router | test the line
      | send {me} a longer cable | give {me} a faster line""",
      "restart the line | send a second router",
      """send somebody to test the router | reset the line for {me}
      | give {me} a new cable""",
    ),
    "fact": (
      """the number on the router:code | the time of the last restart:time
      | the colour of the light:choice | the address of the line:place
      | the name on the contract:name""",
      "the day of the first failure:date | the code on the box:code",
      """the code on the router:code | the day of the last reset:date
      | the light that is on:choice""",
    ),
    "wish": (
      """time for the technician:time | router:choice | day for the visit:date
      | place for the router:place""",
      "cable:choice | hour for the test:time",
      "day for the technician:date | new router:choice | visit time:time",
    ),
    "news": (
      """there is work on the line in your street | the router is quite old
      | the light is green when all is well""",
      "the network was down last night | the box needs ten minutes",
      "there was work on the network | the light is red after a reset",
    ),
    "detail": (
      """I restarted it three times | the cable is plugged in
      | I moved in last month""",
      "the old box was fine | I have two floors",
      "I plugged the cable in twice | I restarted it this morning",
    ),
  },
  "invoice": {
    "problem": (
      """the invoice is too high | {my} payment was taken twice
      | the discount is missing | there is a wrong name on the bill
      | I never got the invoice""",
      "the tax on the bill is wrong | I was charged for two months",
      """{my} bill is too high | the name on the invoice is wrong
      | I was charged twice for it""",
    ),
    "action": (
      """send {me} a new invoice | correct the bill | refund the second payment
      | split the sum in two | take off the late fee""",
      "correct the tax | send a copy by post",
      """send {me} a copy of the bill | refund the late fee
      | correct the name on the invoice""",
    ),
    "fact": (
      """the invoice number:code | the date of the payment:date
      | the name on the bill:name | the address on the invoice:place
      | the wrong item:choice""",
      "the number of the bill:code | the first day of the contract:date",
      """the number on the invoice:code | the day of the payment:date
      | the item on the bill:choice""",
    ),
    "wish": (
      """payment day:date | plan:choice | billing address:place
      | time for a call:time""",
      "tariff:choice | day for the first rate:date",
      "new payment day:date | payment plan:choice | address for the bill:place",
    ),
    "news": (
      """the bill was sent last week | the discount ended in spring
      | the payment takes three days""",
      "the tax has changed this year | the copy costs nothing",
      "the invoice was paid last week | the discount has ended",
    ),
    "detail": (
      """I paid it on the same day | I always pay by card
      | my contract is two years old""",
      "I have the receipt here | my wife pays the bills",
      "I paid by card last week | I have two contracts",
    ),
  },
  "booking": {
    "problem": (
      """{my} booking is gone | the room was not clean | the train was too late
      | I cannot change {my} seat | we got the wrong room""",
      "the hotel does not find {my} name | the window does not close",
      """the hotel has lost {my} booking | {my} room is too loud
      | I cannot open the ticket""",
    ),
    "action": (
      """cancel the booking | change the room | book a later train
      | keep two seats for {me} | send {me} the tickets""",
      "book the seat at the window | move the trip by a day",
      """cancel one of the rooms | book a seat for {me}
      | change the train""",
    ),
    "fact": (
      """the booking number:code | the day of arrival:date
      | the time of departure:time | the name of the guest:name
      | the room on the booking:choice""",
      "the number on the ticket:code | the time of arrival:time",
      """the number of the booking:code | the day of departure:date
      | the hour of the train:time""",
    ),
    "wish": (
      """travel day:date | room:choice | departure time:time | seat:choice""",
      "train:time | view:choice",
      "day for the trip:date | new room:choice | train time:time",
    ),
    "news": (
      """breakfast starts at seven | the hotel is full this week
      | the ticket holds for a month""",
      "the pool is closed | the last train is full",
      "the hotel opens at seven | the ticket holds all week",
    ),
    "detail": (
      """we are two people | I travel with a dog | I booked it in January""",
      "I come with a child | it is our first trip",
      "I travel with two people | we booked it last week",
    ),
  },
  "account": {
    "problem": (
      """I cannot log in | {my} password does not work | {my} account is locked
      | the code never arrived | somebody changed {my} address""",
      "the page shows an error | {my} login is not known",
      """{my} login does not work | I cannot open {my} account
      | the mail with the code never came""",
    ),
    "action": (
      """reset the password | unlock {my} account | send {me} a new code
      | change {my} phone number | close the account""",
      "send the link again | remove the old phone",
      """reset {my} login | send {me} a new password
      | change the name of the account""",
    ),
    "fact": (
      """the user name:name | the code in the message:code
      | the day of the last login:date | the account in use:choice
      | the time of the error:time""",
      "the number of the customer:code | the first name and surname:name",
      """the name of the user:name | the code in the mail:code
      | the time of the last login:time""",
    ),
    "wish": (
      """account:choice | time for a call back:time | new user name:name
      | contact address:place""",
      "picture:choice | hour for the call:time",
      "time for the call:time | user name:name | login method:choice",
    ),
    "news": (
      """the code holds for ten minutes | the account locks after three attempts
      | the link is in the message""",
      "the page was down today | the mail goes out at once",
      "the password holds for a year | the code is in the message",
    ),
    "detail": (
      """I have a new phone | I tried it three times
      | I have used it for years""",
      "my phone is quite old | I work from home",
      "I tried it twice today | I use a new phone",
    ),
  },
  "appliance": {
    "problem": (
      """the washing machine leaks | the oven gets too hot
      | the fridge is very loud | the door of the dryer does not close
      | the dishwasher stops after a minute""",
      "the kettle smells of smoke | the freezer is not cold",
      """the oven does not get hot | the washing machine is too loud
      | the door of the fridge does not close""",
    ),
    "action": (
      """repair the machine | send {me} a new door | check the pump
      | take the old fridge away | exchange the oven""",
      "repair the freezer | bring a new kettle",
      """repair the oven | take the machine away | send {me} a new pump""",
    ),
    "fact": (
      """the serial number:code | the date of purchase:date
      | the model in the kitchen:choice | the shop of purchase:place
      | the time of the failure:time""",
      "the number on the door:code | the place of the machine:place",
      """the number of the model:code | the shop on the receipt:place
      | the day of purchase:date""",
    ),
    "wish": (
      """repair day:date | new model:choice | visiting hour:time
      | place for the new one:place""",
      "mechanic's hour:time | colour:choice",
      "time for the repair:time | model:choice | day for the mechanic:date",
    ),
    "news": (
      """the guarantee covers two years | the pump has to be ordered
      | our mechanic works alone""",
      "the part comes from abroad | the shop is closed today",
      "the guarantee covers the pump | the mechanic works all week",
    ),
    "detail": (
      """I bought it last year | it is on the second floor
      | I have the receipt at hand""",
      "it was a gift | I live on the fourth floor",
      "I bought it in spring | it is in the kitchen",
    ),
  },
}
