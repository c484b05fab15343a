// The one translation unit that holds the bodies of Asio and Beast (BOOST_ASIO_SEPARATE_COMPILATION and
// BOOST_BEAST_SEPARATE_COMPILATION are set for everyone who links http/).
#include <boost/asio/impl/src.hpp>
#include <boost/beast/src.hpp>
