"""Common given names of some thirty countries, without accents, in lower case. Names that are
common words or places too (Rose, Ruby, Amber, June, Paris, Victoria, Chelsea, Mark, Grace) are left
out: a list of flowers or of towns is no list of people.
"""

import unicodedata

_BY_LANGUAGE = {
    "English": (
        "james john robert michael william david richard joseph thomas charles christopher daniel matthew "
        "anthony donald steven paul andrew joshua kenneth kevin brian george edward ronald timothy jason "
        "jeffrey ryan jacob gary nicholas eric jonathan stephen larry justin scott brandon benjamin samuel "
        "gregory alexander patrick raymond jerry dennis tyler aaron jose adam nathan henry zachary douglas "
        "peter kyle noah ethan jeremy walter keith roger terry austin sean gerald carl harold dylan arthur "
        "lawrence jesse bryan billy bruce gabriel logan alan juan ralph roy eugene randy vincent russell "
        "louis philip bobby johnny bradley mary patricia jennifer linda elizabeth barbara susan jessica karen "
        "sarah lisa nancy sandra betty ashley emily kimberly margaret donna michelle carol amanda melissa "
        "deborah stephanie rebecca sharon laura cynthia dorothy amy kathleen angela shirley emma brenda "
        "pamela nicole anna samantha katherine christine debra rachel carolyn janet maria olivia heather "
        "helen catherine diane julie joyce evelyn joan christina kelly lauren martha judith cheryl megan "
        "andrea ann alice jean doris jacqueline kathryn hannah julia teresa gloria janice sophia frances "
        "alexis tammy beverly denise danielle marilyn kayla theresa liam mason lucas oliver elijah isabella "
        "mia ava chloe abigail harriet oscar archie alfie imogen freya nigel graham trevor gareth rhys callum "
        "ewan fergus alistair siobhan niamh aoife saoirse ciara ciaran eoin oisin declan cormac padraig"
    ),
    "German": (
        "hans klaus jurgen wolfgang dieter manfred uwe gunter horst bernd heinz werner gerhard helmut jorg "
        "frank stefan thorsten matthias ralf andreas markus sebastian tobias florian lukas leon finn jonas "
        "felix maximilian moritz niklas philipp tim jan fabian dominik ursula renate helga karin ingrid "
        "gisela monika petra sabine claudia birgit heike martina andrea silke anja katrin kerstin stefanie "
        "lena lea leonie johanna marie greta frieda anneliese hildegard elke ulrike jutta gudrun friedrich "
        "wilhelm otto karl heinrich johannes rainer detlef axel holger"
    ),
    "French": (
        "jean pierre michel andre philippe alain bernard jacques francois christian daniel gilles pascal "
        "thierry laurent nicolas christophe julien antoine mathieu guillaume romain clement hugo theo enzo "
        "maxime baptiste olivier sylvie nathalie isabelle catherine monique francoise valerie sandrine "
        "veronique celine aurelie emilie camille manon lea chloe ines juliette charlotte margaux elodie "
        "virginie brigitte chantal genevieve yvette marcel rene fabrice cedric yannick gaelle solene amelie "
        "benoit etienne"
    ),
    "Spanish": (
        "jose antonio manuel francisco juan javier carlos miguel alejandro rafael fernando luis sergio jorge "
        "alberto pablo alvaro diego adrian raul enrique ramon vicente ruben oscar ivan carmen josefa isabel "
        "dolores pilar teresa ana cristina marta lucia rosario antonia montserrat paula elena raquel silvia "
        "beatriz rocio sofia valentina camila ximena guadalupe ricardo eduardo gonzalo ignacio santiago mateo "
        "joaquin esteban hector gustavo"
    ),
    "Portuguese": (
        "joao antonio paulo pedro francisco marcos luiz lucas rafael thiago tiago bruno felipe rodrigo "
        "gustavo leonardo guilherme vinicius joaquim rui nuno goncalo duarte ana adriana juliana fernanda "
        "patricia aline camila larissa beatriz mariana gabriela leticia catarina ines joana margarida "
        "francisca vitoria raimundo"
    ),
    "Italian": (
        "giuseppe giovanni mario luigi salvatore vincenzo pietro carlo franco domenico bruno paolo michele "
        "giorgio marco luca matteo alessandro andrea lorenzo davide simone federico riccardo stefano roberto "
        "fabio giulia giuseppina rosa angela giovanna lucia caterina francesca chiara sara martina federica "
        "silvia elisa alessia valentina ilaria elena paola laura simona daniela alessandra leonardo tommaso "
        "edoardo enrico massimo claudio"
    ),
    "Dutch": (
        "jan johannes pieter cornelis hendrik willem dirk gerrit jeroen sander bram daan sem thijs ruben lars "
        "joost maarten wouter koen bart anna johanna wilhelmina cornelia annelies marieke sanne femke lotte "
        "anouk maud fenna tess lieke esther inge saskia"
    ),
    "Nordic": (
        "lars anders johan erik per karl nils ole bjorn mikael peter jan hans henrik magnus fredrik gustav "
        "axel oskar emil kristian morten jens soren rasmus mads mikkel olav knut svein terje hakon sven goran "
        "lennart juha timo jari matti antti mikko jukka heikki pekka ville eero kari anna eva karin kristina "
        "ingrid birgitta astrid sigrid solveig ingeborg maja elsa linnea freja mette kirsten hanne inger liv "
        "marit randi tuula paivi aino helmi kaisa riitta gudrun sigurdur jon olafur"
    ),
    "Polish": (
        "jan andrzej piotr krzysztof stanislaw tomasz pawel marcin michal grzegorz jerzy tadeusz adam lukasz "
        "zbigniew ryszard dariusz henryk mariusz kazimierz wojciech robert mateusz marian rafal jacek maciej "
        "jakub szymon bartosz kamil anna maria katarzyna malgorzata agnieszka krystyna barbara ewa elzbieta "
        "zofia janina teresa joanna magdalena monika jadwiga danuta irena halina helena beata aleksandra "
        "marta dorota marianna grazyna jolanta stanislawa iwona karolina bozena urszula justyna renata alicja "
        "paulina sylwia natalia wanda agata zuzanna"
    ),
    "Czech, Slovak, Hungarian": (
        "jiri jan petr josef pavel martin tomas jaroslav miroslav zdenek vaclav frantisek milan karel lukas "
        "vojtech ondrej stepan jana eva hana lenka katerina vera alena petra veronika jaroslava tereza "
        "martina jozef peter stefan ladislav zuzana katarina laszlo istvan jozsef janos zoltan sandor gabor "
        "ferenc attila tamas zsolt tibor bela erzsebet ilona katalin zsuzsanna agnes andrea judit eszter"
    ),
    "Balkan, Romanian, Greek": (
        "andrei alexandru mihai ion constantin vasile nicolae gheorghe florin cristian ioana elena mihaela "
        "andreea alina gabriela ivan georgi dimitar nikolay petar hristo stoyan maria desislava ivana marija "
        "ana petra luka marko josip ante stjepan goran zoran dragan milan jovan nikola stefan milica jelena "
        "dragana giorgos dimitris konstantinos ioannis nikos christos vasilis panagiotis eleni katerina "
        "vasiliki sofia angeliki georgia dimitra konstantina ioanna janez franc anton alojz bostjan mojca "
        "natasa"
    ),
    "Slavic": (
        "alexander sergey sergei vladimir dmitry dmitri andrey alexey alexei mikhail nikolai igor oleg yuri "
        "yury boris viktor maxim evgeny pavel anatoly olga tatiana natalia svetlana irina elena ekaterina "
        "anastasia marina galina lyudmila yulia oksana daria polina ksenia taras bohdan mykola oleksandr "
        "volodymyr vasyl iryna nataliya olena yaroslav stanislav vyacheslav"
    ),
    "Cyrillic": (
        "александр сергей владимир дмитрий андрей алексей михаил николай игорь олег юрий борис виктор максим "
        "евгений иван ольга татьяна наталья светлана ирина елена екатерина анастасия марина галина людмила "
        "юлия мария анна"
    ),
    "Turkish": (
        "mehmet mustafa ahmet ali huseyin hasan ibrahim ismail osman yusuf murat omer ramazan halil emre "
        "burak fatma ayse emine hatice zeynep elif meryem serife merve zehra busra esra ozlem gulsen hulya "
        "deniz kemal cem can"
    ),
    "Arabic, Persian, Hebrew": (
        "mohamed mohammed muhammad ahmed mahmoud mustafa ibrahim youssef omar khaled hassan hussein abdullah "
        "abdul karim tariq samir walid rashid fatima aisha khadija mariam maryam zainab layla leila noor "
        "yasmin salma amina hana reza hossein mehdi parisa moshe yosef avraham yitzhak shlomo noam itai tamar "
        "noa shira yael miriam rivka"
    ),
    "Indian": (
        "rajesh suresh ramesh mahesh amit sanjay vijay anil sunil manoj ashok rahul rohit arjun vikram ravi "
        "deepak arun prakash krishna aarav vivaan aditya ishaan sunita anita geeta lakshmi priya pooja neha "
        "anjali kavita deepa shreya divya meena rekha sita radha ananya diya lalita"
    ),
    "East Asian": (
        "wei ming jing hui xin yan hong mei xiuying fang wang hiroshi takashi kenji akira satoshi makoto "
        "haruto yuto sota yuki sakura yui aoi hina keiko yoko naoko minjun seojun jiho minji jiwoo seoyeon "
        "nguyen thi anh linh huong budi agus siti dewi sri putri somchai"
    ),
    "African": (
        "chukwuemeka oluwaseun adebayo chinedu ngozi amara kwame kofi ama akosua thabo sipho nomvula themba "
        "wanjiru kamau njeri otieno"
    ),
}


def plain(word: str) -> str:
    """In lower case and without accents, as the dictionary has it."""
    folded = word.casefold().replace("ø", "o").replace("ł", "l").replace("đ", "d").replace("ı", "i").replace("æ", "ae")
    return "".join(c for c in unicodedata.normalize("NFD", folded) if not unicodedata.combining(c))


GIVEN_NAMES = frozenset(plain(name) for names in _BY_LANGUAGE.values() for name in names.split())
